"""easy-VQA: 64-pixel images of one coloured shape with questions, from the PyPI package `easy-vqa`.

The official format is read unchanged: `questions.json` is a list of [question, answer, image id], and the images are
`images/<image id>.png` beside it. There are 4,000 training and 1,000 test images, 38,575 and 9,673 questions, and 13
answers. Source: github.com/vzhou842/easy-VQA.
"""

import importlib.util
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

from sparse_vlm.errors import UserError
from sparse_vlm.files import read_json

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
YES_NO = ("no", "yes")

Kind = Literal["yes/no", "colour", "shape"]


@dataclass(frozen=True)
class VqaQuestion:
    """A question of a split.

    Attributes:
        id: position in the official file.
        image_id: number of the image.
        text: the question.
        answer: the answer, a single word.
    """

    id: int
    image_id: int
    text: str
    answer: str

    @property
    def kind(self) -> Kind:
        """The kind of the answer, which depends only on the words of the question."""
        words = self.text.split()
        if words[0] != "what":
            return "yes/no"
        return "colour" if "color" in words else "shape"

    @property
    def names_what_is_shown(self) -> bool:
        """True if the image shows what this yes/no question names, as for "is there not a circle?" with answer "no"."""
        negated = bool(set(self.text.rstrip("?").split()) & {"no", "not"})
        return (self.answer == "yes") != negated


@dataclass(frozen=True)
class Attributes:
    """The shape of an image and its colour."""

    shape: str
    colour: str

    @property
    def caption(self) -> str:
        """A caption such as "a red circle"."""
        return f"a {self.colour} {self.shape}"


# all 24 classes of zero-shot classification
CLASSES = tuple(Attributes(shape, colour) for shape, colour in product(SHAPES, COLOURS))


def split_folder(split: Literal["train", "test"]) -> Path:
    """Return the folder of a split in the installed package, which holds questions.json and images/."""
    package = importlib.util.find_spec("easy_vqa")
    if package is None or package.origin is None:
        raise UserError("The easy-VQA dataset is not installed: pip install easy-vqa.")
    return Path(package.origin).parent / "data" / split


def read_questions(path: str | Path) -> list[VqaQuestion]:
    """Read a questions.json in the official format."""
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} must hold a non-empty list of [question, answer, image id].")
    questions = []
    for index, entry in enumerate(entries):
        if not isinstance(entry, list) or [type(value) for value in entry] != [str, str, int] or not entry[0].strip():
            raise UserError(f"{path}: entry {index} is {entry!r}; it must be [question, answer, image id].")
        questions.append(VqaQuestion(index, entry[2], entry[0], entry[1]))
    return questions


def load_questions(split: Literal["train", "test"]) -> list[VqaQuestion]:
    """Read all questions of a split of the installed package."""
    return read_questions(split_folder(split) / "questions.json")


def image_path(folder: str | Path, image_id: int) -> Path:
    """Return the file of an image.

    Args:
        folder: the folder of the images, e.g. `split_folder("train") / "images"`.
        image_id: number of the image.
    """
    return Path(folder) / f"{image_id}.png"


def hold_out_images(
    questions: Sequence[VqaQuestion], images: int, seed: int = 0
) -> tuple[list[VqaQuestion], list[VqaQuestion]]:
    """Hold out the questions about some images, to choose settings with.

    Args:
        questions: all questions.
        images: number of images to draw at random.
        seed: of the draw.

    Returns:
        (the remaining questions, the held-out questions).
    """
    ids = sorted({question.image_id for question in questions})
    if not 0 < images < len(ids):
        raise UserError(f"Cannot hold out {images} of {len(ids)} images: choose 1 to {len(ids) - 1}.")
    held_out = set(random.Random(seed).sample(ids, images))
    rest = [question for question in questions if question.image_id not in held_out]
    return rest, [question for question in questions if question.image_id in held_out]


def prompt(question: str) -> str:
    """Return the prompt of a question: the question itself, without an instruction, in training and evaluation."""
    return question


def attributes_from_questions(questions: Iterable[VqaQuestion]) -> dict[int, Attributes]:
    """Infer the shape and colour of images from their questions and answers.

    All shapes and colours are possible at first, and each answer excludes some: "what color is the circle?" teal -> a
    teal circle; "is there a red shape?" no -> not red. An image is settled when one shape and one colour remain, which
    holds for 3,578 of the 4,000 training images and 888 of the 1,000 test images.

    Returns:
        image id -> Attributes of the settled images, sorted by image id.
    """
    candidates: dict[int, tuple[set[str], set[str]]] = {}
    for question in questions:
        possible = candidates.setdefault(question.image_id, (set(SHAPES), set(COLOURS)))
        for values in possible:
            _narrow(values, question)
    return {
        image_id: Attributes(shapes.pop(), colours.pop())
        for image_id, (shapes, colours) in sorted(candidates.items())
        if len(shapes) == len(colours) == 1
    }


def _narrow(values: set[str], question: VqaQuestion) -> None:
    """Remove from the possible shapes (or colours) of an image those that an answered question excludes."""
    words = set(question.text.rstrip("?").split())
    if question.kind != "yes/no":
        stated = words | {question.answer}
        if stated & values:
            values &= stated
    elif words & values:
        shown = question.names_what_is_shown
        values.intersection_update(words) if shown else values.difference_update(words)
