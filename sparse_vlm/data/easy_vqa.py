"""easy-VQA: 64-pixel pictures of one coloured shape and questions about them, from the PyPI package `easy-vqa`.

Official format, read as it is: `questions.json` is a list of [question, answer, image id], the images lie beside it as
`images/<image id>.png`. A question's id is its place in that list. 4,000 training and 1,000 test images, 38,575 and
9,673 questions, 13 answers. Source: github.com/vzhou842/easy-VQA.
"""

import importlib.util
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

from sparse_vlm.errors import UserError

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
YES_NO = ("no", "yes")

Kind = Literal["yes/no", "colour", "shape"]


@dataclass(frozen=True)
class VqaQuestion:
    """One question of a split; `id` is its place in the official file."""

    id: int
    image_id: int
    text: str
    answer: str

    @property
    def kind(self) -> Kind:
        """What the answer is: "yes/no", a "colour" or a "shape". Follows from the question's words alone."""
        words = self.text.split()
        if words[0] != "what":
            return "yes/no"
        return "colour" if "color" in words else "shape"

    @property
    def asks_for_what_is_shown(self) -> bool:
        """Of a yes/no question: whether the picture shows what it names. "is there not a circle?" no -> True."""
        negated = bool(set(self.text.rstrip("?").split()) & {"no", "not"})
        return (self.answer == "yes") != negated


@dataclass(frozen=True)
class Attributes:
    """What a picture shows."""

    shape: str
    colour: str

    @property
    def caption(self) -> str:
        """E.g. "a red circle"."""
        return f"a {self.colour} {self.shape}"


# the 24 classes of the zero-shot test
CLASSES = tuple(Attributes(shape, colour) for shape, colour in product(SHAPES, COLOURS))


def split_folder(split: Literal["train", "test"]) -> Path:
    """The installed package's folder of a split: questions.json and images/.

    Raises:
        UserError: the package is not installed.
    """
    package = importlib.util.find_spec("easy_vqa")
    if package is None or package.origin is None:
        raise UserError("The easy-VQA dataset is not installed: pip install easy-vqa.")
    return Path(package.origin).parent / "data" / split


def read_questions(path: str | Path) -> list[VqaQuestion]:
    """Reads a questions.json in the official format.

    Raises:
        UserError: no such file, or an entry that is not [question, answer, image id].
    """
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"Cannot read the easy-VQA questions {path}: {error.strerror}.") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}). Expected easy-VQA's questions.json.") from None
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} must hold a non-empty list of [question, answer, image id].")
    questions = []
    for index, entry in enumerate(entries):
        if not isinstance(entry, list) or [type(value) for value in entry] != [str, str, int] or not entry[0].strip():
            raise UserError(f"{path}: entry {index} is {entry!r}, expected [question, answer, image id].")
        questions.append(VqaQuestion(index, entry[2], entry[0], entry[1]))
    return questions


def load_questions(split: Literal["train", "test"]) -> list[VqaQuestion]:
    """All questions of a split of the installed package."""
    return read_questions(split_folder(split) / "questions.json")


def image_path(folder: str | Path, image_id: int) -> Path:
    """An image's file; `folder` holds the images, e.g. `split_folder("train") / "images"`."""
    return Path(folder) / f"{image_id}.png"


def hold_out_images(
    questions: Sequence[VqaQuestion], images: int, seed: int = 0
) -> tuple[list[VqaQuestion], list[VqaQuestion]]:
    """Splits by image, for choosing settings: (the rest, the questions about `images` randomly drawn images).

    Raises:
        UserError: fewer than 1 or not fewer than all images are asked for.
    """
    ids = sorted({question.image_id for question in questions})
    if not 0 < images < len(ids):
        raise UserError(f"Cannot hold out {images} of {len(ids)} images: choose 1 to {len(ids) - 1}.")
    held_out = set(random.Random(seed).sample(ids, images))
    rest = [question for question in questions if question.image_id not in held_out]
    return rest, [question for question in questions if question.image_id in held_out]


def prompt(question: str) -> str:
    """How a question is put to the model, in training and evaluation alike: plainly, with no instruction."""
    return question


def attributes_from_questions(questions: Iterable[VqaQuestion]) -> dict[int, Attributes]:
    """Shape and colour of the images for which both follow from their questions and answers.

    An image starts with every shape and colour; each answered question narrows them: "what color is the circle?"
    teal -> a teal circle; "is there a red shape?" no -> not red; an excluded value is as good as a stated one when only
    one value remains. 3,578 of the 4,000 training and 888 of the 1,000 test images are settled that way.

    Returns:
        image id -> Attributes, in the order of the image ids.
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
    """Removes from an image's possible shapes (or colours) what the answered question rules out."""
    words = set(question.text.rstrip("?").split())
    if question.kind != "yes/no":
        stated = words | {question.answer}
        if stated & values:
            values &= stated
    elif words & values:
        shown = question.asks_for_what_is_shown
        values.intersection_update(words) if shown else values.difference_update(words)
