"""The picture of the README: where the quickstart's model looks, step by step, and what it answers.

python docs/figures/answers.py --model runs/quickstart/model --output docs/figures/answers.png
"""

import argparse
from collections.abc import Sequence

from sparse_vlm.data import easy_vqa
from sparse_vlm.data.images.decode import open_image
from sparse_vlm.visualize import roi_figure, save_figure
from sparse_vlm.vlm.chat import answer
from sparse_vlm.vlm.loading import load_vlm

ASKED = {0: "what color is the shape?", 2: "what shape does the image contain?"}  # of easy-VQA's test pictures


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args(argv)

    model, processor = load_vlm(arguments.model)
    folder = easy_vqa.split_folder("test") / "images"
    pictures = [open_image(easy_vqa.image_path(folder, number)) for number in ASKED]
    figure = roi_figure(model.model.vision_tower.encoder, pictures)
    steps = len(figure.axes) // len(pictures)
    for row, (picture, question) in enumerate(zip(pictures, ASKED.values(), strict=True)):
        said = answer(model, processor, picture, easy_vqa.prompt(question))
        label = f"{question}\n\n→  {said}"
        figure.axes[row * steps].set_ylabel(label, rotation=0, ha="right", va="center", labelpad=12)
    figure.set_size_inches(2.4 * steps + 2.4, 2.5 * len(pictures))
    save_figure(figure, arguments.output)


if __name__ == "__main__":
    main()
