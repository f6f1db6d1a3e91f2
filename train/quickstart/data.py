"""easy-VQA's training split as LLaVA data: captions for the alignment, conversations for the instruction tuning.

    python -m train.quickstart.data --output_dir runs/quickstart/data

train/, validation/: the images of the training split; validation images are used for measuring and for choosing
settings, never for training.
captions.json: one caption per training image, e.g. "a red circle". Captions follow from the training questions and
answers alone.
reading.json: conversations without an image, whose prompts hold the caption instead: the LLM learns to answer the
questions from words, and to say the caption when it is asked nothing.
instruct.json: conversations about images: first with as many answers "yes" as "no", then with as many questions about
the colour that is shown as about others. Without these a model that never recognises a colour does well, because seven
of eight such questions name another one. The order is a curriculum: train on the file sequentially.
validation.json, questions.json: the questions about the validation images and the test questions (all, or those about
the first images), in the official format.
"""

import argparse
import random
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from sparse_vlm.data.conversations.formats import IMAGE_PLACEHOLDER
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
from sparse_vlm.errors import exit_with_sentence
from sparse_vlm.files import new_directory, write_json

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
    """`count` conversations without an image: each prompt is the caption and a question, one the caption alone."""
    records: list[Record] = []
    for image in _rounds(usable_images(questions, by_colour) & attributes.keys(), count, order):
        caption = attributes[image].caption
        chosen = balanced(questions[image], by_colour, order)
        turns = [(caption, caption), *((f"{caption}\n{prompt(q.text)}", q.answer) for q in chosen)]
        records.append(_record(f"text-{len(records)}-{image}", turns))
    return records


def image_records(questions: Questions, sort: Sort, count: int, order: random.Random) -> list[Record]:
    """`count` conversations about images; all usable images once before any comes again, with other questions.

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
    """Sort of a yes/no question about a colour: whether the image shows it; None of another."""
    about_colour = question.kind == "yes/no" and set(question.text.rstrip("?").split()) & set(COLOURS)
    return question.names_what_is_shown if about_colour else None


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


def official(questions: Iterable[VqaQuestion]) -> list[list[str | int]]:
    """Questions in the official format: [question, answer, image id] each."""
    return [[q.text, q.answer, q.image_id] for q in questions]


def _copy_images(image_ids: Iterable[int], folder: Path) -> None:
    """Make `folder` hold these images of the training split and no others."""
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
    """Write the folders and files that the module's head lists, instruct.json last.

    Args:
        output_dir: of the files.
        texts: conversations without an image.
        images_by_answer: conversations about images with as many questions answered "yes" as "no".
        images_by_colour: with as many questions about the colour that the image shows as about others.
        test_images: test images whose questions are asked; None: all.
        validation_images: images of the training split that are held out of training, the same for every seed.
        seed: of every order.

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
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=160, help="conversations without an image")
    parser.add_argument("--images_by_answer", type=int, default=320, help="conversations, yes and no in balance")
    parser.add_argument(
        "--images_by_colour", type=int, default=320, help="conversations, the colour shown and others in balance"
    )
    parser.add_argument("--test_images", type=int, help="test images to ask about; default: all")
    parser.add_argument("--validation_images", type=int, default=200, help="training images to hold out")
    parser.add_argument("--seed", type=int, default=0)
    arguments = vars(parser.parse_args(argv))
    return exit_with_sentence(lambda: write_data(**arguments))


if __name__ == "__main__":
    sys.exit(main())
