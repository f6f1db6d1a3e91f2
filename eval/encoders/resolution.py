"""One encoder at several image sizes: time, movement of the RoIs, and change of the embedding.

    python -m eval.encoders.resolution --encoder runs/quickstart/encoder --images a.jpg b.jpg --scales 1 2 3
    python -m eval.encoders.resolution --encoder DIR --images a.jpg --figure points.png --output resolution.json

The number of tokens is the same at every size; only the stem sees more pixels. Prints for each size the time of an
image, how far the last RoIs lie from those at the first size, and the cosine of the embeddings.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from torch import Tensor

from eval.encoders.arguments import add_encoder, write_result
from eval.tables import rich_table
from sparse_vlm.command_line import CommandParser, add_device_arguments
from sparse_vlm.devices import choose_device, choose_dtype
from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.preprocessing import Transform
from sparse_vlm.encoder.runtime.sampling_steps import record_sampling_steps
from sparse_vlm.figures import check_figure, save_figure
from sparse_vlm.files import check_output_files
from sparse_vlm.image_files import open_image
from sparse_vlm.measure.timing import require_positive, take_turns


@dataclass(frozen=True)
class AtSize:
    """Outputs of an encoder for B images at one size.

    Attributes:
        side: image size in pixels.
        seconds: seconds per image, the shortest of several runs.
        rois: RoIs of the last sampling step, float32[B, n, 4].
        points: sampling points of the last step in image coordinates, float32[B, n, P, 2].
        pooled: embeddings float32[B, D].
    """

    side: int
    seconds: float
    rois: Tensor
    points: Tensor
    pooled: Tensor


@torch.inference_mode()
def at_size(encoder: SparseFormer, images: Sequence[Image.Image], scale: int, repeats: int = 5) -> AtSize:
    """Run the encoder on the images, resized and cropped to `scale` times its own input size."""
    preprocessing = encoder.config.preprocessing
    crop = scale * preprocessing.crop
    transform = Transform(replace(preprocessing, resize=scale * preprocessing.resize, crop=crop))
    weight = encoder.stem.conv.weight
    pixels = torch.stack([transform(image) for image in images]).to(weight.device, weight.dtype)
    step, output = record_sampling_steps(encoder, pixels)[-1], encoder(pixels)
    (seconds,) = take_turns([partial(encoder, pixels)], repeats, pixels.device)
    return AtSize(crop, min(seconds) / len(images), output.rois[-1].cpu(), step.points, output.pooled.float().cpu())


def compare(results: Sequence[AtSize]) -> list[dict[str, float]]:
    """Compare every size with the first."""
    first = results[0]
    return [
        {
            "pixels": result.side,
            "seconds": result.seconds,
            "times_the_first": result.seconds / first.seconds,
            "rois_moved": (result.rois - first.rois).abs().mean().item(),
            "cosine": torch.cosine_similarity(result.pooled, first.pooled, dim=-1).mean().item(),
        }
        for result in results
    ]


def table_rows(compared: Sequence[dict[str, float]]) -> list[list[str]]:
    """Format the comparison as rows of text, the heading first."""
    rows = [["pixels", "ms per image", "× the first", "RoI corners moved by (mean)", "cosine of embeddings"]]
    for each in compared:
        times = [f"{1e3 * each['seconds']:.2f}", f"{each['times_the_first']:.2f}"]
        rows.append([f"{each['pixels']:.0f}", *times, f"{each['rois_moved']:.4f}", f"{each['cosine']:.4f}"])
    return rows


def points_figure(encoder: SparseFormer, images: Sequence[Image.Image], results: Sequence[AtSize]) -> Figure:
    """Draw the last sampling points on the images: a row per image, a column per size, a colour per token."""
    pre = encoder.config.preprocessing
    figure = Figure(figsize=(2.6 * len(results), 2.7 * len(images)), layout="constrained")
    grid = figure.subplots(len(images), len(results), squeeze=False)
    plain = replace(pre, mean=(0, 0, 0), std=(1, 1, 1))
    for column, result in enumerate(results):
        transform = Transform(replace(plain, resize=pre.resize * result.side // pre.crop, crop=result.side))
        for row, image in enumerate(images):
            axes, points = grid[row, column], result.points[row]
            axes.imshow(transform(image).clamp(0, 1).permute(1, 2, 0).numpy(), extent=(0, 1, 1, 0))
            colours = torch.arange(len(points)).repeat_interleave(points.shape[1])
            axes.scatter(*points.flatten(0, 1).T.numpy(), c=colours.numpy(), cmap="hsv", s=3, linewidths=0)
            axes.set(xlim=(-0.1, 1.1), ylim=(1.1, -0.1), xticks=[], yticks=[], aspect="equal")
        grid[0, column].set_title(f"{result.side} pixels", fontsize=9)
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, evaluate, and return the exit status."""
    parser = CommandParser.of_module("eval.encoders.resolution", __doc__)
    add_encoder(parser)
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="image files")
    parser.add_argument(
        "--scales", type=int, nargs="+", default=[1, 2, 3], help="multiples of the encoder's size (default: 1 2 3)"
    )
    parser.add_argument("--figure", type=Path, help="image file to write: the sampling points at every size")
    add_device_arguments(parser)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser.run(_run, argv)


def _run(arguments: argparse.Namespace) -> None:
    require_positive(scales=arguments.scales)
    inputs = [arguments.encoder, *arguments.images]
    check_figure("--figure", arguments.figure, inputs)
    check_output_files({"--output": arguments.output, "--figure": arguments.figure}, inputs)
    torch.set_num_threads(1)
    device = choose_device(arguments.device)
    encoder = SparseFormer.from_pretrained(arguments.encoder)
    dtype = choose_dtype(arguments.dtype, device)
    encoder.to(device, dtype)
    images = [open_image(file) for file in arguments.images]
    results = [at_size(encoder, images, scale) for scale in arguments.scales]
    compared = compare(results)
    write_result(arguments.output, {"images": len(images), "sizes": compared}, dtype)
    if arguments.figure is not None:
        save_figure(points_figure(encoder, images, results), arguments.figure)
    Console().print(rich_table(table_rows(compared), "", ""))


if __name__ == "__main__":
    sys.exit(main())
