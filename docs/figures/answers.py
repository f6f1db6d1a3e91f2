"""Draw the README's figure: RoIs of the quickstart's model at each sampling step, and its answers.

Example:
    python docs/figures/answers.py --model runs/quickstart/model --output docs/figures/answers.png
"""

import argparse
import sys
from collections.abc import Sequence

from sparse_vlm.command_line import CommandParser, describe
from sparse_vlm.data import easy_vqa
from sparse_vlm.draw import roi_figure
from sparse_vlm.figures import save_figure
from sparse_vlm.files import check_output_files
from sparse_vlm.image_files import open_image
from sparse_vlm.vlm.chat import answer
from sparse_vlm.vlm.loading import load_vlm

QUESTIONS = {
    0: "what color is the shape?",
    2: "what shape does the image contain?",
}  # number of easy-VQA's test image -> question


def draw(arguments: argparse.Namespace) -> None:
    """Draw one row per image: its RoIs after each sampling step, the question and the answer."""
    check_output_files({"--output": arguments.output}, [arguments.model])
    model, processor = load_vlm(arguments.model)
    folder = easy_vqa.split_folder("test") / "images"
    images = [open_image(easy_vqa.image_path(folder, number)) for number in QUESTIONS]
    figure = roi_figure(model.model.vision_tower.encoder, images)
    steps = len(figure.axes) // len(images)
    for row, (image, question) in enumerate(zip(images, QUESTIONS.values(), strict=True)):
        text = answer(model, processor, image, easy_vqa.prompt(question))
        label = f"{question}\n\n→  {text}"
        figure.axes[row * steps].set_ylabel(label, rotation=0, ha="right", va="center", labelpad=12)
    figure.set_size_inches(2.4 * steps + 2.4, 2.5 * len(images))
    save_figure(figure, arguments.output)


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser("python docs/figures/answers.py", *describe(__doc__))
    parser.add_argument("--model", required=True, help="directory of the quickstart's model")
    parser.add_argument("--output", required=True, help="the figure to write, .png or .svg")
    return parser.run(draw, argv)


if __name__ == "__main__":
    sys.exit(main())
