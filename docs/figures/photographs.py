"""Draw photographs with a model's RoIs at the last sampling step, and its answers.

Example:
    python docs/figures/photographs.py PHOTOGRAPH --model runs/photographs/student/model_0.0001 --output answers.png
"""

import argparse
import sys
from collections.abc import Sequence

from matplotlib.figure import Figure

from sparse_vlm.command_line import CommandParser, describe
from sparse_vlm.draw import draw_sampling_steps, undo_normalisation
from sparse_vlm.encoder.runtime.sampling_steps import record_sampling_steps
from sparse_vlm.figures import check_figure, save_figure
from sparse_vlm.image_files import open_image
from sparse_vlm.vlm.chat import answer
from sparse_vlm.vlm.loading import load_vlm
from sparse_vlm.vlm.vision import check_free_rois

QUESTION = "what is this?"


def draw(arguments: argparse.Namespace) -> None:
    """Draw one panel per photograph."""
    check_figure("--output", arguments.output, [arguments.model, *arguments.photographs])
    images = [open_image(file) for file in arguments.photographs]
    model, processor = load_vlm(arguments.model)
    check_free_rois(model.model.vision_tower)
    encoder, count = model.model.vision_tower.encoder, arguments.tokens or processor.num_image_tokens
    preprocessing = encoder.config.preprocessing
    figure = Figure(figsize=(3 * len(images), 3.4), layout="constrained")
    for axes, image in zip(figure.subplots(1, len(images), squeeze=False)[0], images, strict=True):
        pixels = encoder.transform(image)[None]
        shown = undo_normalisation(pixels, preprocessing.mean, preprocessing.std)[0].numpy()
        last = record_sampling_steps(encoder, pixels, tokens=count)[-1:]
        axes.imshow(draw_sampling_steps(shown, last, 0, range(count)))
        text = answer(model, processor, image, arguments.question, visual_tokens=count)
        axes.set_title(f"{arguments.question}\n→ {text}", fontsize=9)
        axes.set_axis_off()
    save_figure(figure, arguments.output)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, draw, and return the exit status."""
    parser = CommandParser("python docs/figures/photographs.py", *describe(__doc__))
    parser.add_argument("photographs", nargs="+", help="image files")
    parser.add_argument("--model", required=True, help="model directory with a SparseFormer")
    parser.add_argument("--tokens", type=int, help="number of visual tokens (default: the model's own)")
    parser.add_argument("--question", default=QUESTION, help=f"the question about each (default: {QUESTION!r})")
    parser.add_argument("--output", required=True, help="the figure to write: .png, .svg or .pdf")
    return parser.run(draw, argv)


if __name__ == "__main__":
    sys.exit(main())
