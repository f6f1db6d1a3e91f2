"""Indexed sets of images: a folder, a Hugging Face data set. Items: {"pixel_values": float32[3, H, W]}."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from sparse_vlm.data.images.files import StringTable, image_paths
from sparse_vlm.data.images.hf_tables import cell_bytes
from sparse_vlm.data.images.seeded import SeededImages
from sparse_vlm.data.substitutes import Substitutes
from sparse_vlm.errors import UserError
from sparse_vlm.image_files import decode_image, open_image


class IndexedImages(SeededImages, Dataset):
    """Base class of indexed image sets. With on_bad_image "skip", another image replaces an unreadable one.

    The substitute depends only on (seed, epoch, index); see `Substitutes`.

    Args:
        count: number of images.
        transform, seed, on_bad_image: see `SeededImages`.
    """

    def __init__(
        self, count: int, transform: Callable[[Image.Image], Tensor], seed: int = 0, on_bad_image: str = "error"
    ) -> None:
        super().__init__(transform, seed, on_bad_image)
        self._substitutes = Substitutes(count, self.bad)

    def __len__(self) -> int:
        return len(self._substitutes)

    @abstractmethod
    def read(self, index: int) -> Image.Image:
        """Return the RGB image at `index`.

        Raises:
            UserError: the image is unreadable.
        """

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return the item at `index`, with another image if that one is unreadable and the policy is "skip"."""
        if not 0 <= index < len(self):
            raise IndexError(index)  # ends a plain `for image in images`
        found, image = self._substitutes.read(index, self.read, self.seed, self.epoch)
        return self.item(self.augmented(image, found), found)

    def item(self, pixels: Tensor, index: int) -> dict[str, Tensor]:
        """Return the item at `index` with the given pixels."""
        return {"pixel_values": pixels}


class ImageSubset(IndexedImages):
    """A subset of an image set, with the same transform, seed and policy.

    Args:
        whole: the set.
        indices: of the images in the subset.
    """

    def __init__(self, whole: IndexedImages, indices: Sequence[int]) -> None:
        super().__init__(len(indices), whole.transform, whole.seed, whole.bad.policy)
        self.whole, self.indices = whole, torch.tensor(indices)

    def read(self, index: int) -> Image.Image:
        return self.whole.read(int(self.indices[index]))

    def item(self, pixels: Tensor, index: int) -> dict[str, Tensor]:
        return self.whole.item(pixels, int(self.indices[index]))


def evenly_spaced(images: IndexedImages, count: int) -> list[int]:
    """Choose `count` indices. Folders are often sorted by class, so the first images would not be typical."""
    return [index * len(images) // count for index in range(count)]


class HeldOutImages(Dataset):
    """Images to evaluate on. An unreadable image is not replaced by another, which would then count twice.

    Items are those of the set with "readable": bool[]. If it is False (on_bad_image "skip"), the pixels are those of a
    black image, which keeps the shape of the batch, and the item must be left out of the metric.

    Args:
        images: the set.
        indices: of the images to use; None: all.
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
    """Every image file below a folder, sorted by path.

    Args:
        folder: searched recursively; see `image_paths`.
        transform, seed, on_bad_image: see `SeededImages`.
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
        column: its images, not decoded; see `cell_bytes`.
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
