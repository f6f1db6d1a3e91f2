"""Questions about what a photograph shows, of three kinds, whose words alone do not tell the answer.

"name": "what is this?" "yes/no": "is there a church?", once about the thing and once about another. "choice": "is this
a church or a tench?", as often with the right one first as last. Other things are drawn evenly.
"""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from sparse_vlm.data.conversations.encoding import IMAGE_PLACEHOLDER
from train.quickstart.data import Record, conversation_record
from train.studies.photographs.classes import THINGS, Photograph, with_article

KINDS = ("name", "yes/no", "choice")


class Asked(NamedTuple):
    """A question and its answer."""

    kind: str
    text: str
    answer: str


class Interviewer:
    """Asks about things, one after another, balancing over all that it has asked.

    Args:
        order: random numbers.
    """

    def __init__(self, order: random.Random) -> None:
        self.order = order
        self.denied: Counter[str] = Counter()
        self.compared: Counter[str] = Counter()
        self.right_first = {thing: order.random() < 0.5 for thing in THINGS.values()}

    def ask(self, thing: str) -> list[Asked]:
        """Return four questions about a photograph of `thing`, shuffled: a name, two of yes/no, a choice."""
        absent, other = self._another(thing, self.denied), self._another(thing, self.compared)
        first, second = (thing, other) if self.right_first[thing] else (other, thing)
        self.right_first[thing] = not self.right_first[thing]
        asked = [
            Asked("name", "what is this?", thing),
            Asked("yes/no", f"is there {with_article(thing)}?", "yes"),
            Asked("yes/no", f"is there {with_article(absent)}?", "no"),
            Asked("choice", f"is this {with_article(first)} or {with_article(second)}?", thing),
        ]
        return self.order.sample(asked, len(asked))

    def _another(self, thing: str, drawn: Counter[str]) -> str:
        """Draw another thing among those drawn least, and count it."""
        others = [other for other in THINGS.values() if other != thing]
        fewest = min(drawn[other] for other in others)
        chosen = self.order.choice([other for other in others if drawn[other] == fewest])
        drawn[chosen] += 1
        return chosen


def caption_records(photographs: Sequence[Photograph]) -> list[Record]:
    """Return one LLaVA sample per photograph: the image, then e.g. "a golf ball"."""
    return [
        conversation_record(f"caption-{number}", [(IMAGE_PLACEHOLDER, with_article(shown.thing))], shown.name)
        for number, shown in enumerate(photographs)
    ]


def text_records(count: int, order: random.Random) -> list[Record]:
    """Return `count` conversations without an image. Prompts are the caption, and the caption with a question."""
    interviewer, records = Interviewer(order), []
    things = list(THINGS.values())
    for number in range(count):
        if number % len(things) == 0:
            order.shuffle(things)
        thing = things[number % len(things)]
        caption = with_article(thing)
        turns = [(caption, caption), *((f"{caption}\n{q.text}", q.answer) for q in interviewer.ask(thing))]
        records.append(conversation_record(f"text-{number}", turns))
    return records


def image_records(photographs: Sequence[Photograph], count: int, order: random.Random) -> list[Record]:
    """Return `count` conversations about photographs. One repeats, with other questions, only after all had a turn."""
    interviewer, records = Interviewer(order), []
    shown = list(photographs)
    for number in range(count):
        if number % len(shown) == 0:
            order.shuffle(shown)
        photograph = shown[number % len(shown)]
        turns = [(q.text, q.answer) for q in interviewer.ask(photograph.thing)]
        turns[0] = (f"{IMAGE_PLACEHOLDER}\n{turns[0][0]}", turns[0][1])
        records.append(conversation_record(f"image-{number}", turns, photograph.name))
    return records


def question_lines(photographs: Sequence[Photograph], order: random.Random) -> list[dict[str, Any]]:
    """Return the lines of a question file for `eval.generate short_answers`."""
    interviewer = Interviewer(order)
    asked = [(shown.name, question) for shown in photographs for question in interviewer.ask(shown.thing)]
    return [
        {"question_id": number, "image": name, "text": q.text, "category": q.kind, "answer": q.answer}
        for number, (name, q) in enumerate(asked)
    ]
