"""One encoder at several input sizes: `python -m eval.encoders.resolution ENCODER_DIR PICTURE ... --scales 1 2 3`.

The token count is the same at every size; only the stem sees more pixels. Printed for each size: time of an image,
how far the last RoIs lie from those at the first size, and the cosine of the embeddings. --figure: where tokens look.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sparse_vlm.device_arguments import add_device_arguments
from sparse_vlm.devices import choose_device, choose_dtype, synchronize
from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.preprocessing import Transform
from sparse_vlm.errors import UserError, exit_with_sentence
from sparse_vlm.figures import check_figure, save_figure
from sparse_vlm.image_files import open_image
from sparse_vlm.sampling_steps import record_sampling_steps


@dataclass(frozen=True)
class AtSize:
    """What an encoder makes of B pictures at one size.

    Attributes:
        side: pixels.
        seconds: of one image, the least of several runs: thread CPU time on the CPU, else until the device is done.
        rois: float32[B, n, 4], the last ones.
        points: float32[B, n, P, 2], where the tokens looked last, in image coordinates.
        pooled: float32[B, D].
    """

    side: int
    seconds: float
    rois: Tensor
    points: Tensor
    pooled: Tensor


@torch.inference_mode()
def at_size(encoder: SparseFormer, pictures: Sequence[Image.Image], scale: int, repeats: int = 5) -> AtSize:
    """The pictures resized and cropped as the encoder asks, `scale` times as large."""
    preprocessing = encoder.config.preprocessing
    crop = scale * preprocessing.crop
    transform = Transform(replace(preprocessing, resize=scale * preprocessing.resize, crop=crop))
    weight = encoder.stem.conv.weight
    images = torch.stack([transform(picture) for picture in pictures]).to(weight.device, weight.dtype)
    step, output = record_sampling_steps(encoder, images)[-1], encoder(images)
    clock = time.thread_time if images.device.type == "cpu" else time.perf_counter
    synchronize(images.device)
    seconds = []
    for _ in range(repeats):
        start = clock()
        encoder(images)
        synchronize(images.device)
        seconds.append((clock() - start) / len(pictures))
    return AtSize(crop, min(seconds), output.rois[-1].cpu(), step.points, output.pooled.float().cpu())


def as_table(results: Sequence[AtSize]) -> Table:
    """A row for each size, compared with the first."""
    table = Table("pixels", "ms per image", "× the first", "RoI corners moved by (mean)", "cosine of embeddings")
    first = results[0]
    for result in results:
        moved = (result.rois - first.rois).abs().mean().item()
        cosine = torch.cosine_similarity(result.pooled, first.pooled, dim=-1).mean().item()
        milliseconds, times = 1e3 * result.seconds, result.seconds / first.seconds
        table.add_row(str(result.side), f"{milliseconds:.2f}", f"{times:.2f}", f"{moved:.4f}", f"{cosine:.4f}")
    return table


def points_figure(encoder: SparseFormer, pictures: Sequence[Image.Image], results: Sequence[AtSize]) -> Figure:
    """The last sampling points on the pictures: a row per picture, a column per size, a colour per token."""
    pre = encoder.config.preprocessing
    figure = Figure(figsize=(2.6 * len(results), 2.7 * len(pictures)), layout="constrained")
    grid = figure.subplots(len(pictures), len(results), squeeze=False)
    plain = replace(pre, mean=(0, 0, 0), std=(1, 1, 1))
    for column, result in enumerate(results):
        transform = Transform(replace(plain, resize=pre.resize * result.side // pre.crop, crop=result.side))
        for row, picture in enumerate(pictures):
            axes, points = grid[row, column], result.points[row]
            axes.imshow(transform(picture).clamp(0, 1).permute(1, 2, 0).numpy(), extent=(0, 1, 1, 0))
            colours = torch.arange(len(points)).repeat_interleave(points.shape[1])
            axes.scatter(*points.flatten(0, 1).T.numpy(), c=colours.numpy(), cmap="hsv", s=3, linewidths=0)
            axes.set(xlim=(-0.1, 1.1), ylim=(1.1, -0.1), xticks=[], yticks=[], aspect="equal")
        grid[0, column].set_title(f"{result.side} pixels", fontsize=9)
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.encoders.resolution", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("encoder_dir")
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--scales", nargs="+", type=int, default=[1, 2, 3], help="times the encoder's own size")
    parser.add_argument("--figure", help="image file to write")
    add_device_arguments(parser)
    arguments = parser.parse_args(argv)

    def run() -> None:
        if min(arguments.scales) < 1:
            raise UserError(f"--scales must be at least 1, got {min(arguments.scales)}.")
        check_figure("--figure", arguments.figure, [arguments.encoder_dir, *arguments.pictures])
        torch.set_num_threads(1)
        device = choose_device(arguments.device)
        encoder = SparseFormer.from_pretrained(arguments.encoder_dir)
        encoder.to(device, choose_dtype(arguments.dtype, device))
        pictures = [open_image(file) for file in arguments.pictures]
        results = [at_size(encoder, pictures, scale) for scale in arguments.scales]
        if arguments.figure is not None:
            save_figure(points_figure(encoder, pictures, results), arguments.figure)
        Console().print(as_table(results))

    return exit_with_sentence(run)


if __name__ == "__main__":
    sys.exit(main())
