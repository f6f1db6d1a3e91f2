"""Sets of images with an index: a folder, a Hugging Face data set. Items: {"pixel_values": float32[3, H, W]}."""

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from sparse_vlm.data.images import decode_image, open_image, readable_endings
from sparse_vlm.data.seeded import SeededImages
from sparse_vlm.errors import UserError, one_line


class IndexedImages(SeededImages, Dataset):
    """Images by index. With on_bad_image "skip" the next readable image takes an unreadable one's place."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> Image.Image:
        """RGB image.

        Raises:
            UserError: it is unreadable.
        """

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """The image at `index`, or the next one that can be read.

        Raises:
            IndexError: beyond the last image.
            UserError: it is unreadable and the policy is "error"; none at all can be read.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)  # ends a plain `for image in images`
        for step in range(len(self)):
            found = (index + step) % len(self)
            try:
                image = self.read(found)
            except UserError as error:
                self.bad.handle(error)
                continue
            return self.item(self.augmented(image, found), found)
        raise UserError(f"None of the {len(self)} images can be read.")

    def item(self, pixels: Tensor, index: int) -> dict[str, Tensor]:
        """What there is at an index, with these pixels."""
        return {"pixel_values": pixels}


class HeldOutImages(Dataset):
    """Images to measure with: no other takes an unreadable one's place, it would count twice.

    Items: those of the set, and "readable": bool[]. Where that is False (on_bad_image "skip") the picture is black, so
    that batches keep their shape, and is to be left out of what is measured.

    Args:
        images: the set.
        indices: of the images to take; None: all.
    """

    def __init__(self, images: IndexedImages, indices: Sequence[int] | None = None) -> None:
        self.images, self.indices = images, range(len(images)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        index = self.indices[position]
        try:
            image = self.images.read(index)
        except UserError as error:
            self.images.bad.handle(error)
            pixels, readable = self.images.blank(), False
        else:
            pixels, readable = self.images.augmented(image, index), True
        return self.images.item(pixels, index) | {"readable": torch.tensor(readable)}


class ImageFolder(IndexedImages):
    """Every image file below a folder, in the order of the sorted paths.

    Args:
        folder: searched recursively, links followed, for the file endings that PIL reads.
        transform, seed, on_bad_image: see `SeededImages`.

    Raises:
        UserError: the folder is missing or holds no image; a damaged file, when it is read.
    """

    def __init__(
        self,
        folder: str | Path,
        transform: Callable[[Image.Image], Tensor],
        *,
        seed: int = 0,
        on_bad_image: str = "error",
    ) -> None:
        super().__init__(transform, seed, on_bad_image)
        # An array: of a million objects each data worker would get a copy, merely by counting references to them.
        self.paths = np.array([str(path) for path in image_paths(folder)])

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Image.Image:
        return open_image(self.paths[index])


class ImageTable(IndexedImages):
    """The image column of a Hugging Face data set.

    Args:
        rows: a `datasets.Dataset`.
        column: its images, not decoded: {"bytes": …, "path": …}.
        transform, seed, on_bad_image: see `SeededImages`.
    """

    def __init__(
        self,
        rows: Any,
        column: str,
        transform: Callable[[Image.Image], Tensor],
        *,
        seed: int = 0,
        on_bad_image: str = "error",
    ) -> None:
        super().__init__(transform, seed, on_bad_image)
        self.rows, self.column = rows, column

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> Image.Image:
        name = f"row {index} of {self.column!r}"
        return decode_image(cell_bytes(self.rows[index][self.column], name), name)


def image_paths(folder: str | Path) -> list[Path]:
    """The image files below a folder, also behind links to other folders, sorted.

    Raises:
        UserError: the folder is missing or holds none; one below it cannot be listed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"There is no image folder {folder}.")
    endings = readable_endings()
    try:
        paths = sorted(path for path in _files_below(folder) if path.suffix.lower() in endings)
    except OSError as error:
        raise UserError(f"The folder {error.filename} cannot be read: {error.strerror}.") from None
    if not paths:
        raise UserError(f"The folder {folder} holds no image files.")
    return paths


def _files_below(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """What is no folder; a link back to one of the folders `above` is not followed."""
    here = folder.resolve()
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _files_below(Path(entry.path), (*above, here))
            else:
                yield Path(entry.path)


def cell_bytes(cell: dict[str, Any] | None, name: str) -> bytes:
    """The encoded image of a cell of `datasets.Image(decode=False)`; a path may be remote.

    Raises:
        UserError: the cell is empty, or its file cannot be read.
    """
    if cell is None or (cell["bytes"] is None and not cell["path"]):
        raise UserError(f"The image {name} is missing: its cell is empty.")
    if cell["bytes"] is not None:
        return cell["bytes"]
    try:
        with fsspec.open(cell["path"], "rb") as file:
            return file.read()
    except Exception as error:  # httpx, aiohttp … each has its own
        raise UserError(f"The image {cell['path']} ({name}) cannot be read ({one_line(error)}).") from error
