"""Draw the RoIs on images, and print the share of the first image that they cover.

    python docs/examples/visualise_rois.py A.jpg B.jpg --model runs/quickstart/model --output rois.png

The model is an encoder directory or a model directory. `sparse-vlm rois` draws the same figure.
"""

import argparse
from collections.abc import Sequence

from sparse_vlm.draw import roi_figure
from sparse_vlm.encoder.runtime.sampling_steps import covered_share, record_sampling_steps
from sparse_vlm.figures import save_figure
from sparse_vlm.image_files import open_image
from sparse_vlm.model_directory import open_encoder


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", nargs="+")
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args(argv)

    encoder = open_encoder(arguments.model)
    images = [open_image(file) for file in arguments.images]
    save_figure(roi_figure(encoder, images), arguments.output)

    steps = record_sampling_steps(encoder, encoder.transform(images[0])[None])
    for number, step in enumerate(steps, start=1):
        print(f"sampling step {number}: the RoIs cover {covered_share(step.rois[0]):.0%} of {arguments.images[0]}")


if __name__ == "__main__":
    main()
