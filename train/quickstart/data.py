"""Convert easy-VQA's training split to LLaVA data for the alignment and the instruction tuning.

    python -m train.quickstart.data --output_dir runs/quickstart/data

train/, validation/: the images of the training split. Validation images serve to measure and to choose settings, never
to train.
captions.json: one caption per training image, e.g. "a red circle", derived from the training questions and answers.
reading.json: conversations without an image, whose prompts hold the caption instead: the LLM learns to answer the
questions from words, and to repeat the caption when there is no question.
instruct.json: conversations about images: first with as many answers "yes" as "no", then with as many questions about
the colour in the image as about other colours. Without the latter, a model that never recognises a colour would do
well, because seven of eight such questions name another colour. The order is a curriculum: train on the file
sequentially.
validation.json, questions.json: the questions about the validation images and the test questions (all, or those about
the first images), in the official format.
"""

import random
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from sparse_vlm.command_line import CommandParser
from sparse_vlm.data.conversations.encoding import IMAGE_PLACEHOLDER
from sparse_vlm.data.easy_vqa import (
    COLOURS,
    Attributes,
    VqaQuestion,
    attributes_from_questions,
    hold_out_images,
    image_path,
    load_questions,
    prompt,
    split_folder,
)
from sparse_vlm.files import new_directory, write_json

Record = dict[str, Any]
Questions = dict[int, list[VqaQuestion]]
Kind = Callable[[VqaQuestion], bool | None]


def caption_records(attributes: dict[int, Attributes], order: random.Random) -> list[Record]:
    """Return one LLaVA sample per image, shuffled: the image, then its caption."""
    images = order.sample(sorted(attributes), len(attributes))
    return [
        conversation_record(f"caption-{i}", [(IMAGE_PLACEHOLDER, attributes[i].caption)], f"{i}.png") for i in images
    ]


def text_records(
    attributes: dict[int, Attributes], questions: Questions, count: int, order: random.Random
) -> list[Record]:
    """Return `count` conversations without an image. Prompts are the caption, and the caption with a question."""
    records: list[Record] = []
    for image in _rounds(usable_images(questions, by_colour) & attributes.keys(), count, order):
        caption = attributes[image].caption
        chosen = balanced(questions[image], by_colour, order)
        turns = [(caption, caption), *((f"{caption}\n{prompt(q.text)}", q.answer) for q in chosen)]
        records.append(conversation_record(f"text-{len(records)}-{image}", turns))
    return records


def image_records(questions: Questions, kind: Kind, count: int, order: random.Random) -> list[Record]:
    """Return `count` conversations about images. An image repeats, with other questions, only after all had a turn.

    Args:
        questions: the questions of each image.
        kind: the property whose two values are balanced.
        count: number of conversations.
        order: random numbers.
    """
    records: list[Record] = []
    for image in _rounds(usable_images(questions, kind), count, order):
        turns = [(prompt(q.text), q.answer) for q in balanced(questions[image], kind, order)]
        turns[0] = (f"{IMAGE_PLACEHOLDER}\n{turns[0][0]}", turns[0][1])
        records.append(conversation_record(f"image-{kind.__name__}-{len(records)}-{image}", turns, f"{image}.png"))
    return records


def by_answer(question: VqaQuestion) -> bool | None:
    """True if the answer is "yes", False if "no", None for other questions."""
    return question.answer == "yes" if question.kind == "yes/no" else None


def by_colour(question: VqaQuestion) -> bool | None:
    """True if a yes/no question is about a colour in the image, False if about another colour, None otherwise."""
    about_colour = question.kind == "yes/no" and set(question.text.rstrip("?").split()) & set(COLOURS)
    return question.names_what_is_shown if about_colour else None


def usable_images(questions: Questions, kind: Kind) -> set[int]:
    """Return the images that have questions of both kinds."""
    return {image for image, found in questions.items() if {True, False} <= {kind(question) for question in found}}


def balanced(questions: Sequence[VqaQuestion], kind: Kind, order: random.Random, each: int = 2) -> list[VqaQuestion]:
    """Draw distinct questions of one image, shuffled: at most `each` of either kind and of the others."""
    groups: dict[bool | None, list[VqaQuestion]] = {True: [], False: [], None: []}
    for question in {question.text: question for question in questions}.values():
        groups[kind(question)].append(question)
    chosen = [question for group in groups.values() for question in order.sample(group, min(each, len(group)))]
    return order.sample(chosen, len(chosen))


def _rounds(images: set[int], count: int, order: random.Random) -> list[int]:
    """Draw `count` images in random order, each once before any repeats."""
    drawn: list[int] = []
    while len(drawn) < count:
        drawn += order.sample(sorted(images), min(len(images), count - len(drawn)))
    return drawn


def conversation_record(name: str, turns: Sequence[tuple[str, str]], image: str | None = None) -> Record:
    """Return a LLaVA sample from (question, answer) pairs, the first of which names the image, if there is one."""
    conversation = [
        {"from": role, "value": value}
        for question, answer in turns
        for role, value in (("human", question), ("gpt", answer))
    ]
    return {"id": name, **({} if image is None else {"image": image}), "conversations": conversation}


def official(questions: Iterable[VqaQuestion]) -> list[list[str | int]]:
    """Convert questions to the official format: [question, answer, image id] each."""
    return [[q.text, q.answer, q.image_id] for q in questions]


def _copy_images(image_ids: Iterable[int], folder: Path) -> None:
    """Make `folder` hold exactly these images of the training split."""
    source = split_folder("train") / "images"
    shutil.rmtree(folder, ignore_errors=True)
    with new_directory(folder) as temporary:
        for image in image_ids:
            shutil.copyfile(image_path(source, image), image_path(temporary, image))


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
    """Write the folders and files that the module's docstring lists, instruct.json last.

    Args:
        output_dir: directory for the files.
        texts: number of conversations without an image.
        images_by_answer: number of conversations about images that balance the answers "yes" and "no".
        images_by_colour: number of conversations about images that balance the colour in the image and others.
        test_images: number of test images whose questions are asked; None: all.
        validation_images: number of images of the training split to hold out, the same ones for every seed.
        seed: seed of every order.

    Raises:
        UserError: easy-VQA is not installed, or no images would be left to validate on or to train on.
    """
    training, held_out = hold_out_images(load_questions("train"), validation_images)
    asked = [q for q in load_questions("test") if test_images is None or q.image_id < test_images]
    write_json(output_dir / "validation.json", official(held_out))
    write_json(output_dir / "questions.json", official(asked))
    _copy_images({q.image_id for q in training}, output_dir / "train")
    _copy_images({q.image_id for q in held_out}, output_dir / "validation")
    order = random.Random(seed)
    attributes = attributes_from_questions(training)
    questions: Questions = defaultdict(list)
    for question in training:
        questions[question.image_id].append(question)
    write_json(output_dir / "captions.json", caption_records(attributes, order))
    write_json(output_dir / "reading.json", text_records(attributes, questions, texts, order))
    instruct = image_records(questions, by_answer, images_by_answer, order)
    instruct += image_records(questions, by_colour, images_by_colour, order)
    write_json(output_dir / "instruct.json", instruct)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    parser = CommandParser.of_module("train.quickstart.data", __doc__)
    parser.add_argument("--output_dir", type=Path, required=True, help="directory for the files")
    parser.add_argument("--texts", type=int, default=160, help="conversations without an image (default: 160)")
    parser.add_argument(
        "--images_by_answer", type=int, default=320, help="conversations that balance yes and no (default: 320)"
    )
    parser.add_argument(
        "--images_by_colour",
        type=int,
        default=320,
        help="conversations that balance the colour shown and others (default: 320)",
    )
    parser.add_argument("--test_images", type=int, help="test images to ask about (default: all)")
    parser.add_argument("--validation_images", type=int, default=200, help="training images to hold out (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="seed of every order (default: 0)")
    return parser.run(lambda arguments: write_data(**vars(arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
