"""Common parts of image sets and streams: reproducible random numbers per item, and the policy for bad images."""

import hashlib
import logging
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from sparse_vlm.errors import UserError, check_choice

logger = logging.getLogger(__name__)
BAD_IMAGE_CHOICES = ("error", "skip")
NAMED = 5  # bad images that each data worker reports by name; it only counts further ones
MAX_WORKERS = 1024


def seed_of(*identity: int | str) -> int:
    """Return a 63-bit seed that depends on the values alone. (Python's `hash` of a string changes between runs.)"""
    digest = hashlib.blake2b(repr(identity).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class BadImages:
    """The policy for unreadable images. Data workers count in memory that they share with their parent.

    Args:
        policy: "error" stops with the image's name; "skip" logs the first few names and counts all.
    """

    def __init__(self, policy: str) -> None:
        check_choice("--on_bad_image", policy, BAD_IMAGE_CHOICES)
        self.policy = policy
        # One cell per worker, because additions of two processes to the same cell could be lost.
        self._skipped, self._named = torch.zeros(2, MAX_WORKERS, dtype=torch.int64).share_memory_()

    @property
    def count(self) -> int:
        """Number of unreadable images skipped so far, over all data workers of this process."""
        return int(self._skipped.sum())

    def handle(self, error: UserError) -> None:
        """Report and count one image, or raise `error` if that is the policy."""
        self.report(error)
        self.count_one()

    def count_one(self) -> None:
        """Count a skipped image that `report` has reported, now or earlier."""
        self._skipped[_cell()] += 1

    def report(self, error: UserError) -> None:
        """Log one image, or raise `error` if that is the policy."""
        if self.policy == "error":
            raise UserError(f"{error} Or skip such images: --on_bad_image skip.") from error
        cell = _cell()
        self._named[cell] += 1
        reported = int(self._named[cell])
        if reported <= NAMED:
            logger.warning("Skipped: %s", error)
        elif str(reported).strip("0") == "1":  # 10, 100, 1000 …
            logger.warning("Data worker %d has skipped %d unreadable images; the last: %s", cell, reported, error)


def _cell() -> int:
    worker = get_worker_info()
    return worker.id % MAX_WORKERS if worker else 0


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
