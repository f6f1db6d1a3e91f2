"""Draw where the tokens look, and say how much of the picture they cover.

    python docs/examples/visualise_rois.py A.jpg B.jpg --model runs/quickstart/model --output rois.png

The model is an encoder directory or a model directory. `sparse-vlm rois` draws the same picture.
"""

import argparse
from collections.abc import Sequence

import torch

from sparse_vlm.image_files import open_image
from sparse_vlm.model_directory import open_encoder
from sparse_vlm.visualize import record_glances, roi_figure, save_figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args(argv)

    encoder = open_encoder(arguments.model)
    pictures = [open_image(file) for file in arguments.pictures]
    save_figure(roi_figure(encoder, pictures), arguments.output)

    places = (torch.arange(100) + 0.5) / 100  # of 100 × 100 spots of the picture: which lie in some RoI?
    y, x = torch.meshgrid(places, places, indexing="ij")
    for step, glance in enumerate(record_glances(encoder, encoder.transform(pictures[0])[None]), start=1):
        x1, y1, x2, y2 = glance.rois[0].T[..., None, None]
        inside = (x1 <= x) & (x <= x2) & (y1 <= y) & (y <= y2)
        print(f"sampling step {step}: the RoIs cover {inside.any(dim=0).float().mean():.0%} of {arguments.pictures[0]}")


if __name__ == "__main__":
    main()
