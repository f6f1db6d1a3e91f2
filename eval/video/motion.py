"""Which way does a shape move? An encoder of clips against an image encoder whose frames are averaged.

    python -m eval.video.motion --encoder runs/quickstart/encoder --steps 60

Each clip shows a coloured shape that moves left, right, up or down. With every clip comes its twin, the same frames in
reverse order, so the mean over frames of anything is equal for two directions: it tells the axis, which is 50%, and no
more. Both encoders start with the weights of the image encoder, get a new linear head, and are tuned on the same clips.
The test clips are others.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from rich.console import Console
from torch import Tensor, nn
from tqdm import trange

from eval.encoders.arguments import add_encoder, write_result
from eval.intervals import wilson_interval
from eval.tables import percent, rich_table
from sparse_vlm.command_line import CommandParser
from sparse_vlm.data.easy_vqa import COLOURS, SHAPES
from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.preprocessing import Transform
from sparse_vlm.encoder.video.clips import VideoSparseFormer
from sparse_vlm.errors import UserError
from sparse_vlm.files import check_output_files
from sparse_vlm.measure.timing import require_positive

DIRECTIONS = ("right", "left", "down", "up")  # each second one is the reverse of the one before it
SIDE = 64  # of a frame


class AveragedFrames(nn.Module):
    """An image encoder, and the mean of the embeddings of a clip's frames."""

    def __init__(self, encoder: SparseFormer) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, clips: Tensor) -> Tensor:
        """float[B, T, 3, H, W] -> float[B, D]"""
        return self.encoder(clips.flatten(0, 1)).pooled.unflatten(0, clips.shape[:2]).mean(1)


class EncodedClips(nn.Module):
    """An encoder of clips, inflated from an image encoder, and its embedding."""

    def __init__(self, encoder: SparseFormer, spans: int) -> None:
        super().__init__()
        self.encoder = VideoSparseFormer.from_image_encoder(encoder, spans)

    def forward(self, clips: Tensor) -> Tensor:
        """float[B, T, 3, H, W] -> float[B, D]"""
        return self.encoder(clips).pooled


def draw_frames(chance: random.Random, frames: int, axis: int) -> list[Image.Image]:
    """Draw a shape of random kind, colour, size, place and speed, which moves along x (axis 0) or y (axis 1)."""
    size, way = chance.uniform(14, 24), chance.uniform(12, 28)
    start = [chance.uniform(2, SIDE - 2 - size - (way if each == axis else 0)) for each in (0, 1)]
    background, colour, shape = chance.randrange(200, 256), chance.choice(COLOURS), chance.choice(SHAPES)
    images = []
    for frame in range(frames):
        x, y = (place + (way * frame / max(frames - 1, 1) if each == axis else 0) for each, place in enumerate(start))
        image = Image.new("RGB", (SIDE, SIDE), (background,) * 3)
        draw, box = ImageDraw.Draw(image), (x, y, x + size, y + size)
        if shape == "circle":
            draw.ellipse(box, fill=colour)
        elif shape == "rectangle":
            draw.rectangle(box, fill=colour)
        else:
            draw.polygon([(x, y + size), (x + size, y + size), (x + size / 2, y)], fill=colour)
        images.append(image)
    return images


def draw_twins(chance: random.Random, pairs: int, frames: int, transform: Transform) -> tuple[Tensor, Tensor]:
    """Draw clips and their reverses: float32[2·pairs, frames, 3, H, W], and int64[2·pairs] into `DIRECTIONS`."""
    clips, directions = [], []
    for _ in range(pairs):
        axis = chance.randrange(2)
        clip = torch.stack([transform(image) for image in draw_frames(chance, frames, axis)])
        clips += [clip, clip.flip(0)]
        directions += [2 * axis, 2 * axis + 1]
    return torch.stack(clips), torch.tensor(directions)


def tune(model: nn.Module, transform: Transform, arguments: argparse.Namespace) -> None:
    """Tune a classifier of clips on new clips in every step, in place."""
    chance = random.Random(arguments.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.learning_rate)
    model.train()
    for _ in trange(arguments.steps, desc="tune", leave=False):
        clips, directions = draw_twins(chance, arguments.batch_size // 2, arguments.frames, transform)
        loss = F.cross_entropy(model(clips), directions)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


@torch.no_grad()
def count_hits(model: nn.Module, clips: Tensor, directions: Tensor, batch_size: int) -> int:
    """Number of clips whose direction the classifier finds."""
    model.eval()
    found = torch.cat([model(part).argmax(-1) for part in clips.split(batch_size)])
    return int((found == directions).sum())


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Tune and test each model; "accuracy" and "confidence_95" by its name."""
    transform = SparseFormer.from_pretrained(arguments.encoder).transform
    test = draw_twins(random.Random(f"test {arguments.seed}"), arguments.test_clips // 2, arguments.frames, transform)
    result: dict[str, Any] = {}
    for spans in arguments.spans:
        torch.manual_seed(arguments.seed)
        encoder = SparseFormer.from_pretrained(arguments.encoder)
        embed = EncodedClips(encoder, spans) if spans else AveragedFrames(encoder)
        width = encoder.config.cortex.head_dim or encoder.config.cortex.width
        model = nn.Sequential(embed, nn.Linear(width, len(DIRECTIONS)))
        tune(model, transform, arguments)
        hits = count_hits(model, *test, arguments.batch_size)
        total = len(test[0])
        name = f"clip, spans: {spans}" if spans else "averaged frames"
        result[name] = {"accuracy": hits / total, "confidence_95": wilson_interval(hits, total)}
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, tune, test, and return the exit status."""
    parser = CommandParser.of_module("eval.video.motion", __doc__)
    add_encoder(parser)
    parser.add_argument(
        "--spans",
        type=int,
        nargs="+",
        default=[0, 1, 4],
        help="encoders to measure: numbers of spans of time of an encoder of clips, or 0 for averaged frames, whose "
        "steps take longest (default: 0 1 4)",
    )
    parser.add_argument("--steps", type=int, default=60, help="optimiser steps (default: 60)")
    parser.add_argument("--batch_size", type=int, default=32, help="clips in a step, an even number (default: 32)")
    parser.add_argument("--frames", type=int, default=8, help="frames of a clip (default: 8)")
    parser.add_argument("--test_clips", type=int, default=200, help="test clips, an even number (default: 200)")
    parser.add_argument("--learning_rate", type=float, default=5e-4, help="of AdamW (default: 5e-4)")
    parser.add_argument("--seed", type=int, default=0, help="of the clips and the new weights (default: 0)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser.run(_run, argv)


def _run(arguments: argparse.Namespace) -> None:
    check_output_files({"--output": arguments.output}, [arguments.encoder])
    require_positive(steps=arguments.steps)
    if not arguments.learning_rate > 0:
        raise UserError(f"--learning_rate must be positive, got {arguments.learning_rate:g}.")
    if min(arguments.spans) < 0:
        raise UserError(f"--spans must not be negative, got {min(arguments.spans)}.")
    if arguments.frames < 2:
        raise UserError(f"A shape moves over at least 2 frames, got --frames {arguments.frames}.")
    for name in ("batch_size", "test_clips"):
        value = getattr(arguments, name)
        if value < 2 or value % 2:
            raise UserError(f"--{name} must be even and at least 2, because each clip has a twin, got {value}.")
    result = measure(arguments)
    write_result(arguments.output, result, torch.float32)
    rows = [[name, percent(each["accuracy"], each["confidence_95"])] for name, each in result.items()]
    title = f"direction of motion, {arguments.test_clips} clips of {arguments.frames} frames, {arguments.steps} steps"
    Console().print(rich_table([["encoder", "accuracy, % (95%)"], *rows], title, "chance: 25%; the axis alone: 50%"))


if __name__ == "__main__":
    sys.exit(main())
