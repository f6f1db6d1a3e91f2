"""Clips of a shape of easy-VQA that moves over a background, with its place in every frame."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from PIL import Image

from sparse_vlm.data.cut_outs import CutOuts, cut_out_shapes, resized_to
from sparse_vlm.data.easy_vqa import CLASSES, load_questions, split_folder
from sparse_vlm.data.images.files import image_paths
from sparse_vlm.encoder.preprocessing import Preprocessing, Transform
from sparse_vlm.errors import UserError
from sparse_vlm.image_files import open_image

SIDE = 128  # pixels of a frame
FRAMES = 16  # of a clip; in the middle, the shape vanishes and another one appears elsewhere
LENGTHS = {"small": (0.1, 0.2), "large": (0.25, 0.45)}  # from and to, in sides of the image
SPEEDS = (0.0, 0.02, 0.05, 0.1)  # sides of the image per frame, in turns

Split = Literal["train", "test"]
Size = Literal["small", "large"]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Clip:
    """A clip of one shape at a time.

    Attributes:
        frames: RGB images of SIDE × SIDE pixels.
        boxes: for each frame the box around the shape, in image coordinates.
        labels: for each frame the index of the shape's class in `easy_vqa.CLASSES`.
        speed: sides of the image per frame.
    """

    frames: tuple[Image.Image, ...]
    boxes: tuple[Box, ...]
    labels: tuple[int, ...]
    speed: float


def make_clips(count: int, split: Split, size: Size, photographs: Path | None, seed: int = 0) -> list[Clip]:
    """Make clips of the shapes of one split of easy-VQA.

    Args:
        count: number of clips.
        split: whose shapes to use. It also chooses the photographs: every other one for each split.
        size: of the shapes, see `LENGTHS`.
        photographs: folder of images for the background; None for plain, light backgrounds as in easy-VQA.
        seed: of all draws.

    Raises:
        UserError: easy-VQA is not installed, or the folder has fewer than two images.
    """
    cut_outs = cut_out_shapes(load_questions(split), split_folder(split) / "images")
    paths = [] if photographs is None else image_paths(photographs)[get_args(Split).index(split) :: 2]
    if photographs is not None and not paths:
        raise UserError(f"{photographs} has too few images: the two halves of the clips need at least one each.")
    order = random.Random(f"{split} {seed}")
    return [_make_clip(cut_outs, size, paths, SPEEDS[number % len(SPEEDS)], order) for number in range(count)]


def _make_clip(cut_outs: CutOuts, size: Size, photographs: Sequence[Path], speed: float, order: random.Random) -> Clip:
    background = _background(photographs, order)
    frames: list[Image.Image] = []
    boxes: list[Box] = []
    labels: list[int] = []
    for label in order.sample(range(len(CLASSES)), 2):
        shown = CLASSES[label]
        shape = resized_to(
            order.choice(cut_outs[shown.shape, shown.colour]), round(order.uniform(*LENGTHS[size]) * SIDE)
        )
        for left, top in move(shape.size, speed, FRAMES // 2, order):
            frame = background.copy()
            frame.paste(shape, (left, top), shape)
            frames.append(frame)
            boxes.append((left / SIDE, top / SIDE, (left + shape.width) / SIDE, (top + shape.height) / SIDE))
            labels.append(label)
    return Clip(tuple(frames), tuple(boxes), tuple(labels), speed)


def move(size: tuple[int, int], speed: float, frames: int, order: random.Random) -> list[tuple[int, int]]:
    """Left upper corners of a thing that moves straight from a random place and is reflected at the borders.

    Args:
        size: width and height of the thing in pixels.
        speed: sides of the image per frame.
        frames: number of corners.
        order: draws place and direction.
    """
    room = [SIDE - pixels for pixels in size]
    place = [order.uniform(0, free) for free in room]
    angle = order.uniform(0, 2 * math.pi)
    step = [speed * SIDE * math.cos(angle), speed * SIDE * math.sin(angle)]
    return [
        (_reflected(place[0] + time * step[0], room[0]), _reflected(place[1] + time * step[1], room[1]))
        for time in range(frames)
    ]


def _reflected(place: float, room: int) -> int:
    """Reflect a coordinate into [0, room]."""
    return round(room - abs(place % (2 * room) - room))


def _background(photographs: Sequence[Path], order: random.Random) -> Image.Image:
    if not photographs:
        return Image.new("RGB", (SIDE, SIDE), tuple(order.randint(225, 255) for _ in range(3)))
    plain = Transform(Preprocessing(resize=SIDE, crop=SIDE, mean=(0, 0, 0), std=(1, 1, 1)))
    pixels = plain(open_image(order.choice(photographs)))
    return Image.fromarray((255 * pixels.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy())
