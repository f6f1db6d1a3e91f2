"""easy-VQA's training split as LLaVA data: captions for the alignment, conversations for the instruction tuning.

    python -m train.quickstart.data --output_dir runs/quickstart/data

captions.json: one caption an image, e.g. "a red circle". Captions follow from the training questions and answers alone.
instruct.json: first conversations without a picture, whose prompts hold the caption instead, until the LLM can answer
the questions; then conversations about pictures, where it has to find the same in the visual tokens. The order is the
curriculum: train on the file sequentially.
questions.json: the test questions in the official format, all or those of the first images.
"""

import argparse
import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparse_vlm.data.conversations import IMAGE_PLACEHOLDER
from sparse_vlm.data.easy_vqa import (
    Attributes,
    VqaQuestion,
    attributes_from_questions,
    hold_out_images,
    load_questions,
    prompt,
)
from sparse_vlm.errors import UserError, exit_with_sentence
from sparse_vlm.files import write_json

Record = dict[str, Any]


def caption_records(attributes: dict[int, Attributes], order: random.Random) -> list[Record]:
    """One LLaVA sample an image, shuffled: the image, then its caption."""
    images = order.sample(sorted(attributes), len(attributes))
    return [_record(f"caption-{i}", [(IMAGE_PLACEHOLDER, attributes[i].caption)], f"{i}.png") for i in images]


def text_records(
    attributes: dict[int, Attributes], questions: dict[int, list[VqaQuestion]], count: int, order: random.Random
) -> list[Record]:
    """`count` conversations without a picture: each prompt is the caption and a question."""
    records = []
    for image in order.sample(sorted(attributes), count):
        caption = attributes[image].caption
        chosen = balanced(questions[image], order, pairs=1, others=1)
        turns = [(f"{caption}\n{prompt(q.text)}", q.answer) for q in chosen]
        records.append(_record(f"text-{image}", turns))
    return records


def image_records(questions: dict[int, list[VqaQuestion]], count: int, order: random.Random) -> list[Record]:
    """`count` conversations about pictures; all images once before any comes again, with other questions."""
    records: list[Record] = []
    while len(records) < count:
        for image in order.sample(sorted(questions), min(len(questions), count - len(records))):
            turns = [(prompt(q.text), q.answer) for q in balanced(questions[image], order)]
            turns[0] = (f"{IMAGE_PLACEHOLDER}\n{turns[0][0]}", turns[0][1])
            records.append(_record(f"image-{len(records)}-{image}", turns, f"{image}.png"))
    return records


def balanced(
    questions: Sequence[VqaQuestion], order: random.Random, pairs: int = 2, others: int = 2
) -> list[VqaQuestion]:
    """As many questions answered "yes" as "no", at most `pairs` each, and at most `others`, in random order.

    Without the balance a model stays at the answers' prior: of an image's true statements most follow from few facts.
    """
    groups: dict[str, list[VqaQuestion]] = defaultdict(list)
    for question in {q.text: q for q in questions}.values():
        kind = question.answer if question.kind == "yes/no" else "other"
        groups[kind].append(question)
    pairs = min(len(groups["yes"]), len(groups["no"]), pairs)
    chosen = [
        question
        for kind, count in (("yes", pairs), ("no", pairs), ("other", min(len(groups["other"]), others)))
        for question in order.sample(groups[kind], count)
    ]
    return order.sample(chosen, len(chosen))


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
    output_dir: Path, *, texts: int, images: int, test_images: int | None, validation_images: int, seed: int
) -> None:
    """Writes questions.json, captions.json and instruct.json.

    Args:
        output_dir: of the two files.
        texts: conversations without a picture.
        images: conversations about pictures.
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
    questions: dict[int, list[VqaQuestion]] = defaultdict(list)
    for question in everything:
        questions[question.image_id].append(question)
    usable = {image: found for image, found in questions.items() if balanced(found, order)}
    if texts > len(attributes):
        raise UserError(f"Only {len(attributes)} images have a caption, {texts} conversations with one were asked for.")
    write_json(output_dir / "captions.json", caption_records(attributes, order))
    instruct = text_records({i: a for i, a in attributes.items() if i in usable}, usable, texts, order)
    write_json(output_dir / "instruct.json", instruct + image_records(usable, images, order))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=120, help="conversations without a picture")
    parser.add_argument("--images", type=int, default=1500, help="conversations about pictures")
    parser.add_argument("--test_images", type=int, help="test images to ask about; default: all")
    parser.add_argument("--validation_images", type=int, default=0, help="ask about so many training images instead")
    parser.add_argument("--seed", type=int, default=0)
    arguments = vars(parser.parse_args(argv))
    return exit_with_sentence(lambda: write_data(**arguments))


if __name__ == "__main__":
    sys.exit(main())
