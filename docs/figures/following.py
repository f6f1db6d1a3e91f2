"""Draw frames of a clip with the RoIs of an encoder: each frame encoded independently, and with a gaze that follows.

Example:
    python docs/figures/following.py --encoder runs/quickstart/encoder --tokens 9 --output docs/figures/following.png
"""

import argparse
import sys
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure

from eval.video.moving_shapes import SPEEDS, make_clips
from sparse_vlm.command_line import CommandParser, describe
from sparse_vlm.draw import draw_sampling_steps, undo_normalisation
from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.runtime.following import Following, FollowingEncoder
from sparse_vlm.encoder.runtime.sampling_steps import SamplingStep
from sparse_vlm.figures import check_figure, save_figure

SHOWN = (0, 1, 3, 5, 7, 8, 10, 15)
WAYS = {"independent": Following(restart=1.0), "following": Following()}


@torch.no_grad()
def draw(arguments: argparse.Namespace) -> None:
    """Draw the last RoIs in some frames of a clip: a row for each way, a column for each frame."""
    check_figure("--output", arguments.output, [arguments.encoder])
    encoder = SparseFormer.from_pretrained(arguments.encoder)
    clip = make_clips(len(SPEEDS), "test", "small", None)[SPEEDS.index(0.05)]
    pixels = torch.stack([encoder.transform(frame) for frame in clip.frames])
    shown = undo_normalisation(pixels, encoder.config.preprocessing.mean, encoder.config.preprocessing.std).numpy()
    figure = Figure(figsize=(1.8 * len(SHOWN), 2.0 * len(WAYS)), layout="constrained")
    grid = figure.subplots(len(WAYS), len(SHOWN))
    for row, (name, settings) in zip(grid, WAYS.items(), strict=True):
        rois = FollowingEncoder(encoder, settings, arguments.tokens)(pixels[None]).rois[-1]
        last = [SamplingStep(rois, rois.new_empty(*rois.shape[:2], 0, 2))]
        for axes, frame in zip(row, SHOWN, strict=True):
            boxes = [clip.boxes[frame]]
            axes.imshow(draw_sampling_steps(shown[frame], last, frame, range(rois.shape[1]), boxes=boxes))
            axes.set(title=f"{name}, frame {frame}", xticks=[], yticks=[])
            axes.title.set_fontsize(8)
            axes.set_axis_off()
    save_figure(figure, arguments.output)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, draw, and return the exit status."""
    parser = CommandParser("python docs/figures/following.py", *describe(__doc__))
    parser.add_argument("--encoder", required=True, help="directory of a bootstrapped SparseFormer")
    parser.add_argument("--tokens", type=int, default=9, help="number of latent tokens (default: 9)")
    parser.add_argument("--output", required=True, help="the figure to write: .png, .svg or .pdf")
    return parser.run(draw, argv)


if __name__ == "__main__":
    sys.exit(main())
