"""Short clips of easy-VQA's shapes, and questions whose answers no single early frame gives away.

| clip    | what happens                                                 | questions                                   |
|---------|--------------------------------------------------------------|---------------------------------------------|
| moves   | a shape moves from near the centre to one side, all the time | which way does the red circle move?         |
| appears | one to three shapes appear one after another, and stay       | which color appears first? how many shapes  |
|         |                                                              | appear?                                     |

The first frame of the former is the same for all four sides, that of the latter is empty.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from sparse_vlm.data.cut_outs import CutOuts, resized_to
from sparse_vlm.data.easy_vqa import COLOURS, SHAPES
from sparse_vlm.errors import optional_import

SIDE = 64  # pixels
RATE, FRAMES = 12, 36  # frames per second, frames
SIDES = (16, 24)  # pixels, the longer side of a shape
PATH = 18  # pixels
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
NUMBERS = ("one", "two", "three")
FIRST, LAST = 0.08, 0.62  # shares of the clip between which shapes appear
KINDS = ("direction", "order", "count")

Question = tuple[str, str, str]  # kind, text, answer


class Clip(NamedTuple):
    """The frames of a clip, and the questions about it."""

    frames: list[Image.Image]
    questions: list[Question]


def draw_clip(cut_outs: CutOuts, moves: bool, order: random.Random) -> Clip:
    """Draw one clip at random."""
    canvas = Image.new("RGB", (SIDE, SIDE), tuple(order.randint(225, 255) for _ in range(3)))
    return _moving(canvas, cut_outs, order) if moves else _appearing(canvas, cut_outs, order)


def _moving(canvas: Image.Image, cut_outs: CutOuts, order: random.Random) -> Clip:
    shape, colour, way = order.choice(SHAPES), order.choice(COLOURS), order.choice(list(WAYS))
    cut_out = resized_to(order.choice(cut_outs[shape, colour]), order.randint(*SIDES))
    start = [(SIDE - length) / 2 + order.randint(-3, 3) for length in cut_out.size]
    frames = []
    for number in range(FRAMES):
        gone = PATH * number / (FRAMES - 1)
        corner = [round(first + step * gone) for first, step in zip(start, WAYS[way], strict=True)]
        frames.append(_pasted(canvas, [(cut_out, corner)]))
    return Clip(frames, [("direction", f"which way does the {colour} {shape} move?", way)])


def _appearing(canvas: Image.Image, cut_outs: CutOuts, order: random.Random) -> Clip:
    count = order.randint(1, len(NUMBERS))
    colours = order.sample(COLOURS, count)
    quarters = order.sample([(x, y) for x in (0, 1) for y in (0, 1)], count)
    window = (LAST - FIRST) / count
    pasted, starts = [], []
    for place, (colour, quarter) in enumerate(zip(colours, quarters, strict=True)):
        cut_out = resized_to(order.choice(cut_outs[order.choice(SHAPES), colour]), order.randint(*SIDES))
        corner = [
            side * SIDE // 2 + order.randint(2, SIDE // 2 - length - 2)
            for side, length in zip(quarter, cut_out.size, strict=True)
        ]
        pasted.append((cut_out, corner))
        starts.append(FRAMES * (FIRST + window * (place + order.uniform(0, 0.7))))
    frames = [
        _pasted(canvas, [part for part, start in zip(pasted, starts, strict=True) if number >= start])
        for number in range(FRAMES)
    ]
    asked = [("order", "which color appears first?", colours[0])]
    return Clip(frames, [*asked, ("count", "how many shapes appear?", NUMBERS[count - 1])])


def _pasted(canvas: Image.Image, parts: Sequence[tuple[Image.Image, Sequence[int]]]) -> Image.Image:
    frame = canvas.copy()
    for cut_out, (left, top) in parts:
        frame.paste(cut_out, (left, top), cut_out)
    return frame


def write_clip(path: Path, frames: Sequence[Image.Image]) -> None:
    """Encode frames as an mp4 file."""
    with optional_import("Writing clips", "video"):
        import av
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=RATE, options={"crf": "12"})
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv444p"
        stream.thread_count = 1
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(image), format="rgb24")))
        container.mux(stream.encode(None))


def record(name: str, file: str, clip: Clip) -> dict[str, Any]:
    """Return a LLaVA sample about a clip."""
    turns = []
    for place, (_, question, answer) in enumerate(clip.questions):
        turns.append({"from": "human", "value": f"<video>\n{question}" if place == 0 else question})
        turns.append({"from": "gpt", "value": answer})
    return {"id": name, "video": file, "conversations": turns}


def without_video(sample: dict[str, Any]) -> dict[str, Any]:
    """Return a sample's conversation without its video."""
    turns = [{**turn, "value": turn["value"].removeprefix("<video>\n")} for turn in sample["conversations"]]
    return {"id": sample["id"], "conversations": turns}


def kind_of(question: str) -> str:
    """Return the kind of a question."""
    return {"which way": "direction", "which col": "order", "how many ": "count"}[question[:9]]
