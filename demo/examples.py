"""Example questions: the operator's own, or questions about shapes as in easy-VQA, the quickstart's data set."""

import json
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw

from sparse_vlm.errors import UserError

BACKGROUND = "#e9e6fb"


class Example(NamedTuple):
    """A question about an image file."""

    image: Path
    question: str


def read_examples(file: Path) -> list[Example]:
    """Read a JSON list of {"image": path, "question": text}; paths are relative to the file.

    Raises:
        UserError: the file does not hold such a list, or an image is missing.
    """
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        found = [Example(file.parent / entry["image"], str(entry["question"])) for entry in entries]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f'{file} is not a list of {{"image": …, "question": …}} ({error!r}).') from error
    for example in found:
        if not example.image.is_file():
            raise UserError(f"The image {example.image} in {file} does not exist.")
    return found


def draw_examples(folder: Path) -> list[Example]:
    """Draw three images of 64 × 64 pixels in `folder` and ask a question about each."""
    questions = {
        "circle": "what shape does the image contain?",
        "rectangle": "what color is the rectangle?",
        "triangle": "is there a circle in the image?",
    }
    found = []
    for shape, question in questions.items():
        image = Image.new("RGB", (64, 64), BACKGROUND)
        draw = ImageDraw.Draw(image)
        if shape == "circle":
            draw.ellipse((14, 10, 38, 34), "#ffff00")
        elif shape == "rectangle":
            draw.rectangle((20, 24, 52, 44), "#0000ff")
        else:
            draw.polygon([(32, 16), (16, 44), (48, 44)], "#ff0000")
        image.save(folder / f"{shape}.png")
        found.append(Example(folder / f"{shape}.png", question))
    return found
