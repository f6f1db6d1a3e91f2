"""The answers of all models to the last question of a session, token by token."""

import io
from collections.abc import Iterator, Sequence
from contextlib import closing

from PIL import Image

from demo.attention import seen_images
from demo.generation import Generation, encode, generate
from demo.models import OpenModel
from demo.session import Seen, SentImage, Session
from sparse_vlm.vlm.decoding import Decoding


def answer(
    models: Sequence[OpenModel],
    session: Session,
    decoding: Decoding,
    max_new_tokens: int,
    counts: Sequence[int | None] | None = None,
) -> Iterator[list[Generation]]:
    """Yield the growing answers to the session's last question.

    The models run one after the other, so that neither slows the other. The session's last turn grows with the answers;
    what a model has seen is set when its answer is complete. A conversation that is too long is refused before the
    session changes.

    Args:
        models: one or two.
        session: contains a question; existing answers to it are replaced.
        decoding: how the next token is chosen.
        max_new_tokens: most tokens of an answer.
        counts: for each model, the number of visual tokens of each image of the conversation; None for its own.

    Raises:
        UserError: the conversation is too long for a model, or does not fit it.
    """
    session.stopping = False
    turn = session.turns[-1]
    images = [image.decode() for image in session.images()]
    prompts = [
        encode(opened, session.messages(k), images, max_new_tokens, counts[k] if counts else None)
        for k, opened in enumerate(models)
    ]
    seen: list[Seen | None] = [None] * len(models)
    turn.answers, session.seen = [], seen
    generations: list[Generation] = []
    for k, (opened, inputs) in enumerate(zip(models, prompts, strict=True)):
        turn.answers.append("")
        generations.append(Generation(inputs))
        with closing(generate(opened, inputs, decoding, max_new_tokens)) as growing:
            for generations[k] in growing:
                if session.stopping:
                    break
                turn.answers[k] = generations[k].text
                yield generations
        if turn not in session.turns:  # cleared meanwhile
            return
        seen[k] = _seen(opened, generations[k])  # a session cleared meanwhile has another list
        yield generations


def warm_up(models: Sequence[OpenModel]) -> None:
    """Generate two tokens about a blank image, so that the first visitor does not wait for one-time work."""
    session = Session()
    blank = io.BytesIO()
    Image.new("RGB", (64, 64)).save(blank, "png")
    session.begin("What is it?", [SentImage(blank.getvalue(), "blank.png", "")])
    for _ in answer(models, session, Decoding(), 2):
        pass


def _seen(opened: OpenModel, generation: Generation) -> Seen | None:
    """Collect the content of the panel; None without images, without an answer, or if the RoIs are unknown."""
    if generation.inputs.get("pixel_values") is None or not generation.ids:
        return None
    images = seen_images(opened, generation)
    if not images:
        return None
    return Seen(images, [opened.processor.tokenizer.decode([token]) for token in generation.ids])
