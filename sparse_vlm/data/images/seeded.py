"""Common parts of image sets and streams: reproducible random numbers per item, and the policy for bad images."""

import hashlib
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from sparse_vlm.data.bad_items import BadItems


def seed_of(*identity: int | str) -> int:
    """Return a 63-bit seed that depends on the values alone. (Python's `hash` of a string changes between runs.)"""
    digest = hashlib.blake2b(repr(identity).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class BadImages(BadItems):
    """The policy for unreadable images, "error" or "skip"; see `BadItems`."""

    def __init__(self, policy: str) -> None:
        super().__init__(policy, "--on_bad_image", "images", "unreadable")


class SeededImages:
    """Base class of image sets and streams.

    The augmentation of an item is a function of (seed, epoch, item). It does not depend on the number of processes or
    data workers, nor on whether the run was interrupted.

    Args:
        transform: RGB image -> Tensor; must draw from torch's generator only, as torchvision v2 does.
        seed: of the augmentation and the order.
        on_bad_image: "error" or "skip".
    """

    def __init__(self, transform: Callable[[Image.Image], Tensor], seed: int, on_bad_image: str) -> None:
        self.transform, self.seed, self.bad = transform, seed, BadImages(on_bad_image)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # persistent data workers see it too

    @property
    def epoch(self) -> int:
        """The current epoch, which determines the order and the augmentation."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch. The data loader calls this before each epoch."""
        self._epoch.fill_(epoch)

    @property
    def unreadable(self) -> int:
        """Number of unreadable images skipped so far, over all data workers of this process."""
        return self.bad.count

    def blank(self) -> Tensor:
        """Return the transform of a black image, a placeholder that keeps the shape of a batch."""
        return self.augmented(Image.new("RGB", (32, 32)), "blank")

    def augmented(self, image: Image.Image, *identity: int | str) -> Tensor:
        """Transform an image with random numbers that depend on the seed, the epoch and the item's identity."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_of(self.seed, self.epoch, *identity))
            return self.transform(image)
