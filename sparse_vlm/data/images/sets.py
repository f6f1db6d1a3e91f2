"""Sets of images with an index: a folder, a Hugging Face data set. Items: {"pixel_values": float32[3, H, W]}."""

import random
from abc import abstractmethod
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import fsspec
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from sparse_vlm.data.images.files import StringTable, image_paths
from sparse_vlm.data.images.seeded import SeededImages, seed_of
from sparse_vlm.errors import UserError, one_line
from sparse_vlm.image_files import decode_image, open_image

DRAWS = 64  # before a set of which nearly nothing can be read is searched


class IndexedImages(SeededImages, Dataset):
    """Images by index. With on_bad_image "skip" another image, drawn at random, takes an unreadable one's place.

    Which one follows from (seed, epoch, index). Unreadable images are read once: data workers and their parent share
    what they have found.

    Args:
        count: images of the set.
        transform, seed, on_bad_image: see `SeededImages`.
    """

    def __init__(
        self, count: int, transform: Callable[[Image.Image], Tensor], seed: int = 0, on_bad_image: str = "error"
    ) -> None:
        super().__init__(transform, seed, on_bad_image)
        self._unreadable = torch.zeros(count, dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self._unreadable)

    @abstractmethod
    def read(self, index: int) -> Image.Image:
        """RGB image.

        Raises:
            UserError: it is unreadable.
        """

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """The image at `index`, or another one if it cannot be read.

        Raises:
            IndexError: beyond the last image.
            UserError: it is unreadable and the policy is "error"; none at all can be read.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)  # ends a plain `for image in images`
        found, image = index, self._readable(index)
        if image is None:
            self.bad.leave_out()
            found, image = self._substitute(index)
        return self.item(self.augmented(image, found), found)

    def item(self, pixels: Tensor, index: int) -> dict[str, Tensor]:
        """What there is at an index, with these pixels."""
        return {"pixel_values": pixels}

    def _readable(self, index: int) -> Image.Image | None:
        """The image, None if it cannot be read."""
        if self._unreadable[index]:
            return None
        try:
            return self.read(index)
        except UserError as error:
            self.bad.name(error)
            self._unreadable[index] = True
            return None

    def _substitute(self, index: int) -> tuple[int, Image.Image]:
        """Another image, and its index: the first of some draws that can be read, or else of all in order."""
        rng = random.Random(seed_of(self.seed, self.epoch, "substitute", index))
        drawn = [rng.randrange(len(self)) for _ in range(DRAWS + 1)]
        for found in chain(drawn, range(drawn[-1], len(self)), range(drawn[-1])):
            if (image := self._readable(found)) is not None:
                return found, image
        raise UserError(f"None of the {len(self)} images can be read.")


class PartOfImages(IndexedImages):
    """Some images of a set, with its transform, seed and policy.

    Args:
        whole: the set.
        indices: of the images.
    """

    def __init__(self, whole: IndexedImages, indices: Sequence[int]) -> None:
        super().__init__(len(indices), whole.transform, whole.seed, whole.bad.policy)
        self.whole, self.indices = whole, torch.tensor(indices)

    def read(self, index: int) -> Image.Image:
        return self.whole.read(int(self.indices[index]))

    def item(self, pixels: Tensor, index: int) -> dict[str, Tensor]:
        return self.whole.item(pixels, int(self.indices[index]))


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
        folder: searched recursively, links followed, hidden files and folders left out, for `readable_endings`.
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
        self.paths = StringTable(map(str, image_paths(folder)))
        super().__init__(len(self.paths), transform, seed, on_bad_image)

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
        super().__init__(len(rows), transform, seed, on_bad_image)
        self.rows, self.column = rows, column

    def read(self, index: int) -> Image.Image:
        name = f"row {index} of {self.column!r}"
        return decode_image(cell_bytes(self.rows[index][self.column], name), name)


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
