"""Draw one encoder with several numbers of tokens, and with its tokens in a region of the image.

Example:
    python docs/figures/gaze.py IMAGE.png --encoder runs/quickstart/encoder --output docs/figures/gaze.png
"""

import argparse
import sys
from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from sparse_vlm.command_line import CommandParser, describe
from sparse_vlm.draw import draw_sampling_steps, undo_normalisation
from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.rois import lay_out_rois
from sparse_vlm.encoder.runtime.sampling_steps import record_sampling_steps
from sparse_vlm.figures import check_figure, save_figure
from sparse_vlm.image_files import open_image

COUNTS = (4, 9, 25)
BOX = (0.5, 0.0, 1.0, 0.5)


def draw(arguments: argparse.Namespace) -> None:
    """Draw the RoIs of the last sampling step, one panel for each set of initial RoIs."""
    check_figure("--output", arguments.output, [arguments.image, arguments.encoder])
    encoder = SparseFormer.from_pretrained(arguments.encoder)
    pixels = encoder.transform(open_image(arguments.image))[None]
    shown = undo_normalisation(pixels, encoder.config.preprocessing.mean, encoder.config.preprocessing.std)[0].numpy()
    starts: list[tuple[str, Tensor, list[tuple[float, ...]]]] = [
        (f"{count} tokens", lay_out_rois(count), []) for count in COUNTS
    ]
    starts.append(("9 tokens in the upper right quarter", lay_out_rois(9, BOX), [BOX]))
    figure = Figure(figsize=(3 * len(starts), 3.2), layout="constrained")
    for axes, (title, rois, boxes) in zip(figure.subplots(1, len(starts)), starts, strict=True):
        last = record_sampling_steps(encoder, pixels, rois=rois)[-1:]
        axes.imshow(draw_sampling_steps(shown, last, 0, range(len(rois)), boxes=boxes))
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    save_figure(figure, arguments.output)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, draw, and return the exit status."""
    parser = CommandParser("python docs/figures/gaze.py", *describe(__doc__))
    parser.add_argument("image", help="an image file")
    parser.add_argument("--encoder", required=True, help="directory of a bootstrapped SparseFormer")
    parser.add_argument("--output", required=True, help="the figure to write: .png, .svg or .pdf")
    return parser.run(draw, argv)


if __name__ == "__main__":
    sys.exit(main())
