"""Questions to begin with: the operator's, or about shapes as in easy-VQA, which the quickstart's model learns."""

import json
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw

from sparse_vlm.errors import UserError

BACKGROUND = "#e9e6fb"


class Example(NamedTuple):
    """A question about a picture file."""

    picture: Path
    question: str


def read_examples(file: Path) -> list[Example]:
    """A JSON list of {"image": path, relative to the file, "question": text}.

    Raises:
        UserError: it is no such list, or a picture is missing.
    """
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        found = [Example(file.parent / entry["image"], str(entry["question"])) for entry in entries]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f'{file} is no list of {{"image": …, "question": …}} ({error!r}).') from error
    for example in found:
        if not example.picture.is_file():
            raise UserError(f"The picture {example.picture} of {file} does not exist.")
    return found


def draw_examples(folder: Path) -> list[Example]:
    """Three pictures of 64 pixels in `folder`, and a question about each."""
    questions = {
        "circle": "what shape does the image contain?",
        "rectangle": "what color is the rectangle?",
        "triangle": "is there a circle in the image?",
    }
    found = []
    for shape, question in questions.items():
        picture = Image.new("RGB", (64, 64), BACKGROUND)
        draw = ImageDraw.Draw(picture)
        if shape == "circle":
            draw.ellipse((14, 10, 38, 34), "#ffff00")
        elif shape == "rectangle":
            draw.rectangle((20, 24, 52, 44), "#0000ff")
        else:
            draw.polygon([(32, 16), (16, 44), (48, 44)], "#ff0000")
        picture.save(folder / f"{shape}.png")
        found.append(Example(folder / f"{shape}.png", question))
    return found
