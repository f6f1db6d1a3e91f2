"""Make canvases with small shapes of easy-VQA, and questions about their colours, with and without regions.

    python -m train.quickstart.small_shapes --output_dir runs/small_shapes

A canvas has 448 × 448 pixels and a light background. Of each kind (circle, rectangle, triangle) it shows one small
shape, 20 to 40 pixels long, and one large shape as a distractor; all six have different colours. Around each small
shape lies a box that contains nothing else.

train/, validation/, test/: the canvases. Their shapes are cut from the images of easy-VQA's training split, from those
of it that are held out, and from its test split.
instruct.json: LLaVA conversations about the training canvases. Each asks for the colours of all small shapes, in words
("what color is the small triangle?") and with a region ("what color is the small shape in <region>?").
validation.json, test.json: questions about the other canvases for `python -m eval.closer_look`, each in both wordings.
"""

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from sparse_vlm.command_line import CommandParser
from sparse_vlm.data.conversations.encoding import IMAGE_PLACEHOLDER
from sparse_vlm.data.cut_outs import CutOuts, cut_outs_by_part, resized_to
from sparse_vlm.data.easy_vqa import (
    COLOURS,
    SHAPES,
    prompt,
)
from sparse_vlm.files import new_directory, write_json
from sparse_vlm.measure.timing import require_positive
from sparse_vlm.vlm.language.control_tokens import REGION_TOKEN

CANVAS = 448
SMALL_SIDES, LARGE_SIDES, BOX_SIDES = (20, 40), (70, 120), (56, 96)  # pixels, smallest and largest
HELD_OUT_IMAGES = 200  # images of the training split, as in train.quickstart.data

Square = tuple[int, int, int]  # left, top, side in pixels


class SmallShape(NamedTuple):
    """A small shape on a canvas, and the box around it in image coordinates."""

    shape: str
    colour: str
    box: tuple[float, ...]

    @property
    def in_words(self) -> str:
        """Question that names the shape."""
        return prompt(f"what color is the small {self.shape}?")


IN_REGION = prompt(f"what color is the small shape in {REGION_TOKEN}?")


def draw_canvas(cut_outs: CutOuts, order: random.Random) -> tuple[Image.Image, list[SmallShape]]:
    """Draw one canvas at random, and return it with its small shapes."""
    canvas = Image.new("RGB", (CANVAS, CANVAS), tuple(order.randint(225, 255) for _ in range(3)))
    colours = order.sample(COLOURS, 2 * len(SHAPES))
    sides = [order.randint(*BOX_SIDES) for _ in SHAPES] + [order.randint(*LARGE_SIDES) for _ in SHAPES]
    squares = place_squares(sides, order)
    small = []
    for place, (shape, colour, (left, top, side)) in enumerate(zip(SHAPES * 2, colours, squares, strict=True)):
        is_small = place < len(SHAPES)
        cut_out = order.choice(cut_outs[shape, colour])
        length = order.randint(*SMALL_SIDES) if is_small else side
        resized = resized_to(cut_out, length)
        corner = left + order.randint(0, side - resized.width), top + order.randint(0, side - resized.height)
        canvas.paste(resized, corner, resized)
        if is_small:
            box = tuple(round(pixels / CANVAS, 4) for pixels in (left, top, left + side, top + side))
            small.append(SmallShape(shape, colour, box))
    return canvas, small


def place_squares(sides: Sequence[int], order: random.Random) -> list[Square]:
    """Place squares of the given sides on a canvas, at random, without overlaps."""
    while True:
        placed: list[Square] = []
        for side in sides:
            square = (order.randint(0, CANVAS - side), order.randint(0, CANVAS - side), side)
            if any(_overlap(square, other) for other in placed):
                break
            placed.append(square)
        else:
            return placed


def _overlap(first: Square, second: Square) -> bool:
    return all(first[axis] < second[axis] + second[2] and second[axis] < first[axis] + first[2] for axis in (0, 1))


def conversation(name: str, image: str, small: Sequence[SmallShape], order: random.Random) -> dict[str, Any]:
    """Return one LLaVA sample: all small shapes in words and with regions, shuffled."""
    turns = [(shown, with_region) for shown in small for with_region in (False, True)]
    order.shuffle(turns)
    values = []
    for place, (shown, with_region) in enumerate(turns):
        question = IN_REGION if with_region else shown.in_words
        values.append({"from": "human", "value": f"{IMAGE_PLACEHOLDER}\n{question}" if place == 0 else question})
        values.append({"from": "gpt", "value": shown.colour})
    boxes = [list(shown.box) for shown, with_region in turns if with_region]
    return {"id": name, "image": image, "regions": boxes, "conversations": values}


def questions_about(image: str, small: Sequence[SmallShape]) -> list[dict[str, Any]]:
    """Return the questions about a canvas as `eval.closer_look` reads them."""
    return [
        {
            "image": image,
            "in_words": shown.in_words,
            "in_region": IN_REGION,
            "box": list(shown.box),
            "answer": shown.colour,
        }
        for shown in small
    ]


def write_small_shapes(output_dir: Path, *, train: int, validation: int, test: int, seed: int) -> None:
    """Write the folders and files that the module's docstring lists, instruct.json last.

    Args:
        output_dir: directory for the files.
        train, validation, test: number of canvases of each part.
        seed: seed of all draws; the parts do not depend on each other's numbers of canvases.

    Raises:
        UserError: easy-VQA is not installed, or a part has no canvas.
    """
    require_positive(train=train, validation=validation, test=test)
    counts = {"train": train, "validation": validation, "test": test}
    for name, cut_outs in cut_outs_by_part(HELD_OUT_IMAGES).items():
        order = random.Random(f"{name} {seed}")
        records: list[dict[str, Any]] = []
        with new_directory(output_dir / name) as folder:
            for number in range(counts[name]):
                canvas, small = draw_canvas(cut_outs, order)
                canvas.save(folder / f"{number}.png")
                if name == "train":
                    records.append(conversation(f"small-{number}", f"{number}.png", small, order))
                else:
                    records += questions_about(f"{number}.png", small)
        write_json(output_dir / ("instruct.json" if name == "train" else f"{name}.json"), records)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    parser = CommandParser.of_module("train.quickstart.small_shapes", __doc__)
    parser.add_argument("--output_dir", type=Path, required=True, help="directory for the files")
    parser.add_argument("--train", type=int, default=1200, help="canvases to train on (default: 1200)")
    parser.add_argument("--validation", type=int, default=100, help="canvases to choose settings with (default: 100)")
    parser.add_argument("--test", type=int, default=300, help="canvases for the test questions (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all draws (default: 0)")
    return parser.run(lambda arguments: write_small_shapes(**vars(arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
