"""Labelled images for supervised fine-tuning: a folder of class folders, or a CSV table of several labels."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from sparse_vlm.data.images.files import PathTable, paths_by_class
from sparse_vlm.data.images.sets import IndexedImages
from sparse_vlm.errors import UserError, one_line
from sparse_vlm.image_files import open_image


@dataclass(frozen=True)
class Labels:
    """Image files with their labels.

    Attributes:
        paths: N files, stored as a `PathTable`.
        values: int64[N] class indices, or float32[N, K] of 0 and 1 if an image has any number of the K classes.
        classes: K names.
    """

    paths: Sequence[Path]
    values: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "paths", PathTable(self.paths))

    @property
    def multi_label(self) -> bool:
        """True if an image may have several classes, or none."""
        return self.values.ndim == 2


class LabelledImages(IndexedImages):
    """Items: {"pixel_values": float32[3, H, W], "labels": int64[] or float32[K]}.

    Args:
        labels: files and labels.
        transform, seed, on_bad_image: see `SeededImages`; with "skip", a substitute comes with its own label.
    """

    def __init__(
        self,
        labels: Labels,
        transform: Callable[[Image.Image], Tensor],
        *,
        seed: int = 0,
        on_bad_image: str = "error",
    ) -> None:
        super().__init__(len(labels.paths), transform, seed, on_bad_image)
        self.labels = labels

    def read(self, index: int) -> Image.Image:
        return open_image(self.labels.paths[index])

    def item(self, pixels: Tensor, index: int) -> dict[str, Tensor]:
        return super().item(pixels, index) | {"labels": self.labels.values[index]}


def read_class_folders(folder: str | Path) -> Labels:
    """Read a folder with one subfolder of images per class. Class names are sorted; hidden folders are ignored."""
    found = paths_by_class(folder)
    if len(found) < 2:
        raise UserError(f"{folder} has {len(found)} subfolders: there must be one per class, and at least two.")
    indices = [index for index, paths in enumerate(found.values()) for _ in paths]
    return Labels([path for paths in found.values() for path in paths], torch.tensor(indices), tuple(found))


def read_label_table(file: str | Path, image_folder: str | Path) -> Labels:
    """Read a CSV table with a column of image files, then a column of 0 and 1 per class. The header names the classes.

    Args:
        file: comma-separated, in UTF-8.
        image_folder: the folder that the image files are relative to.
    """
    if not Path(file).is_file():
        raise UserError(f"There is no table of labels {file}.")
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.reader(stream))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"The table of labels {file} is not a CSV file in UTF-8: {one_line(error)}. Save it as one."
        ) from error
    if len(rows) < 2 or len(rows[0]) < 2:
        raise UserError(f"{file} needs a header (image, then the classes) and one row per image.")
    classes = rows[0][1:]
    if len(set(classes)) != len(classes) or "" in classes:
        raise UserError(f"The header of {file} names a class twice or not at all: {', '.join(rows[0])}.")
    values = torch.tensor([_flags(row, len(classes), f"Line {line} of {file}") for line, row in enumerate(rows[1:], 2)])
    paths = tuple(Path(image_folder) / row[0] for row in rows[1:])
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(
            f"The image {missing[0]} of {file} does not exist ({len(missing)} of {len(paths)} are missing)."
        )
    return Labels(paths, values, tuple(classes))


def _flags(row: list[str], classes: int, where: str) -> list[float]:
    if len(row) != classes + 1:
        raise UserError(f"{where} has {len(row)} columns, but the header has {classes + 1}.")
    wrong = [value for value in row[1:] if value.strip() not in ("0", "1")]
    if wrong:
        raise UserError(f"{where} has the label {wrong[0]!r}: write 0 or 1.")
    return [float(value) for value in row[1:]]
