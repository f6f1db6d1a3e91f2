"""easy-VQA's training split as LLaVA data: captions for the alignment, conversations for the instruction tuning.

    python -m train.quickstart.data --output_dir runs/quickstart/data

captions.json: one caption an image, e.g. "a red circle". Captions follow from the training questions and answers alone.
reading.json: conversations without a picture, whose prompts hold the caption instead: the LLM learns to answer the
questions from words, and to say the caption when it is asked nothing.
instruct.json: conversations about pictures: first with as many answers "yes" as "no", then with as many questions about
the colour that is shown as about others. Without these a model that never recognises a colour does well, because seven
of eight such questions name another one. The order is a curriculum: train on the file sequentially.
questions.json: the test questions in the official format, all or those of the first images.
"""

import argparse
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sparse_vlm.data.conversations import IMAGE_PLACEHOLDER
from sparse_vlm.data.easy_vqa import (
    COLOURS,
    Attributes,
    VqaQuestion,
    attributes_from_questions,
    hold_out_images,
    load_questions,
    prompt,
)
from sparse_vlm.errors import exit_with_sentence
from sparse_vlm.files import write_json

Record = dict[str, Any]
Questions = dict[int, list[VqaQuestion]]
Sort = Callable[[VqaQuestion], bool | None]


def caption_records(attributes: dict[int, Attributes], order: random.Random) -> list[Record]:
    """One LLaVA sample an image, shuffled: the image, then its caption."""
    images = order.sample(sorted(attributes), len(attributes))
    return [_record(f"caption-{i}", [(IMAGE_PLACEHOLDER, attributes[i].caption)], f"{i}.png") for i in images]


def text_records(
    attributes: dict[int, Attributes], questions: Questions, count: int, order: random.Random
) -> list[Record]:
    """`count` conversations without a picture: each prompt is the caption and a question, one the caption alone."""
    records: list[Record] = []
    for image in _rounds(usable_images(questions, by_colour) & attributes.keys(), count, order):
        caption = attributes[image].caption
        chosen = balanced(questions[image], by_colour, order)
        turns = [(caption, caption), *((f"{caption}\n{prompt(q.text)}", q.answer) for q in chosen)]
        records.append(_record(f"text-{len(records)}-{image}", turns))
    return records


def image_records(questions: Questions, sort: Sort, count: int, order: random.Random) -> list[Record]:
    """`count` conversations about pictures; all usable images once before any comes again, with other questions.

    Args:
        questions: of each image.
        sort: what is balanced.
        count: of conversations.
        order: random numbers.
    """
    records: list[Record] = []
    for image in _rounds(usable_images(questions, sort), count, order):
        turns = [(prompt(q.text), q.answer) for q in balanced(questions[image], sort, order)]
        turns[0] = (f"{IMAGE_PLACEHOLDER}\n{turns[0][0]}", turns[0][1])
        records.append(_record(f"image-{sort.__name__}-{len(records)}-{image}", turns, f"{image}.png"))
    return records


def by_answer(question: VqaQuestion) -> bool | None:
    """Sort of a yes/no question: whether the answer is "yes"; None of another."""
    return question.answer == "yes" if question.kind == "yes/no" else None


def by_colour(question: VqaQuestion) -> bool | None:
    """Sort of a yes/no question about a colour: whether the picture shows it; None of another."""
    about_colour = question.kind == "yes/no" and set(question.text.rstrip("?").split()) & set(COLOURS)
    return question.asks_for_what_is_shown if about_colour else None


def usable_images(questions: Questions, sort: Sort) -> set[int]:
    """The images that have questions of both sorts."""
    return {image for image, found in questions.items() if {True, False} <= {sort(question) for question in found}}


def balanced(questions: Sequence[VqaQuestion], sort: Sort, order: random.Random, each: int = 2) -> list[VqaQuestion]:
    """Different questions of one image, shuffled: at most `each` of both sorts and of the rest."""
    groups: dict[bool | None, list[VqaQuestion]] = {True: [], False: [], None: []}
    for question in {question.text: question for question in questions}.values():
        groups[sort(question)].append(question)
    chosen = [question for group in groups.values() for question in order.sample(group, min(each, len(group)))]
    return order.sample(chosen, len(chosen))


def _rounds(images: set[int], count: int, order: random.Random) -> list[int]:
    """`count` images in random order, all of them before one is repeated."""
    drawn: list[int] = []
    while len(drawn) < count:
        drawn += order.sample(sorted(images), min(len(images), count - len(drawn)))
    return drawn


def _record(name: str, turns: Sequence[tuple[str, str]], image: str | None = None) -> Record:
    conversation = [
        {"from": role, "value": value}
        for question, answer in turns
        for role, value in (("human", question), ("gpt", answer))
    ]
    return {"id": name, **({} if image is None else {"image": image}), "conversations": conversation}


def test_records(images: int | None) -> list[list[str | int]]:
    """The official [question, answer, image id] of the first `images` test images (None: all)."""
    questions = load_questions("test")
    return [[q.text, q.answer, q.image_id] for q in questions if images is None or q.image_id < images]


def write_data(
    output_dir: Path,
    *,
    texts: int,
    images_by_answer: int,
    images_by_colour: int,
    test_images: int | None,
    validation_images: int,
    seed: int,
) -> None:
    """Writes questions.json, captions.json, reading.json and, last, instruct.json.

    Args:
        output_dir: of the files.
        texts: conversations without a picture.
        images_by_answer: conversations about pictures with as many questions answered "yes" as "no".
        images_by_colour: with as many questions about the colour that the picture shows as about others.
        test_images: test images whose questions are asked; None: all.
        validation_images: training images left out of training; their questions are asked instead, for choosing
            settings; 0: none.
        seed: of every order.
    """
    everything, asked = load_questions("train"), test_records(test_images)
    if validation_images:
        everything, held_out = hold_out_images(everything, validation_images)
        asked = [[q.text, q.answer, q.image_id] for q in held_out]
    write_json(output_dir / "questions.json", asked)
    order = random.Random(seed)
    attributes = attributes_from_questions(everything)
    questions: Questions = defaultdict(list)
    for question in everything:
        questions[question.image_id].append(question)
    write_json(output_dir / "captions.json", caption_records(attributes, order))
    write_json(output_dir / "reading.json", text_records(attributes, questions, texts, order))
    instruct = image_records(questions, by_answer, images_by_answer, order)
    instruct += image_records(questions, by_colour, images_by_colour, order)
    write_json(output_dir / "instruct.json", instruct)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=160, help="conversations without a picture")
    parser.add_argument("--images_by_answer", type=int, default=320, help="conversations, yes and no in balance")
    parser.add_argument(
        "--images_by_colour", type=int, default=320, help="conversations, the colour shown and others in balance"
    )
    parser.add_argument("--test_images", type=int, help="test images to ask about; default: all")
    parser.add_argument("--validation_images", type=int, default=0, help="ask about so many training images instead")
    parser.add_argument("--seed", type=int, default=0)
    arguments = vars(parser.parse_args(argv))
    return exit_with_sentence(lambda: write_data(**arguments))


if __name__ == "__main__":
    sys.exit(main())
