"""Tile labelled images to grids: a multi-label data set, which asks what each grid contains.

Writes DIR/00000.png, … and DIR/labels.csv in the format of `train.finetune --label_file`. Draw the grids for training,
validation and test from different images.

Example:
    python docs/examples/tile_images.py --images 'wds:imagenette/train-{00..05}.tar' --grids 2000 --output tiled/train
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from sparse_vlm.bootstrap.zero_shot import read_class_names
from sparse_vlm.data.images.labelled_sets import open_labelled_set
from sparse_vlm.files import new_directory


def drawn(images: int, grids: int, cells: int, seed: int) -> Tensor:
    """Draw the images of the grids: int64[grids, cells]. No image is used again before all have been used."""
    generator = torch.Generator().manual_seed(seed)
    rounds = -(-grids * cells // images)
    order = torch.cat([torch.randperm(images, generator=generator) for _ in range(rounds)])
    return order[: grids * cells].view(grids, cells)


def tile(images: Sequence[Image.Image], side: int) -> Image.Image:
    """Crop n² images to squares, and tile them to a grid of about `side` pixels, row by row."""
    n = round(len(images) ** 0.5)
    cell = side // n
    grid = Image.new("RGB", (n * cell, n * cell))
    for place, image in enumerate(images):
        grid.paste(ImageOps.fit(image, (cell, cell)), (place % n * cell, place // n * cell))
    return grid


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", required=True, help="a folder per class, or wds:SHARDS with CLASS/NAME.jpg")
    parser.add_argument("--class_names", type=Path, help="file with one name per class, in the order of the folders")
    parser.add_argument("--output", required=True, type=Path, help="directory to write")
    parser.add_argument("--grids", type=int, default=600)
    parser.add_argument("--cells", type=int, default=2, help="images per row and column of a grid")
    parser.add_argument("--size", type=int, default=112, help="side of a grid in pixels")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)

    found = open_labelled_set(arguments.images, pil_to_tensor)
    names = list(found.classes)
    if arguments.class_names is not None:
        names = read_class_names(arguments.class_names)
        if len(names) != len(found.classes):
            parser.error(f"{arguments.class_names} has {len(names)} names for {len(found.classes)} classes")

    with new_directory(arguments.output) as directory, open(directory / "labels.csv", "w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["image", *names])
        for number, chosen in enumerate(drawn(len(found.images), arguments.grids, arguments.cells**2, arguments.seed)):
            shown = [found.images.read(index) for index in chosen.tolist()]
            tile(shown, arguments.size).save(directory / f"{number:05}.png")
            present = set(found.values[chosen].tolist())
            writer.writerow([f"{number:05}.png", *(int(index in present) for index in range(len(names)))])
    print(f"{arguments.grids} grids with {len(names)} classes in {arguments.output}")


if __name__ == "__main__":
    main()
