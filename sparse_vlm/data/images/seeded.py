"""What every set of images shares: random numbers that follow from the item alone, and the policy for bad images."""

import hashlib
import logging
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from sparse_vlm.errors import UserError, unknown_choice

logger = logging.getLogger(__name__)
BAD_IMAGE_CHOICES = ("error", "skip")
NAMED = 5  # bad images that each data worker names before it only counts
MAX_WORKERS = 1024


def seed_of(*identity: int | str) -> int:
    """A 63-bit seed that is a function of the values alone (Python's `hash` of a string changes from run to run)."""
    digest = hashlib.blake2b(repr(identity).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class BadImages:
    """What becomes of images that cannot be read. Data workers count in memory that they share with their parent.

    Args:
        policy: "error" stops with the image's name; "skip" names the first few in the log and counts all.

    Raises:
        UserError: unknown policy.
    """

    def __init__(self, policy: str) -> None:
        if policy not in BAD_IMAGE_CHOICES:
            raise unknown_choice("--on_bad_image", policy, BAD_IMAGE_CHOICES)
        self.policy = policy
        # One cell per worker: adding to the same one from two processes would lose counts.
        self._left_out, self._named = torch.zeros(2, MAX_WORKERS, dtype=torch.int64).share_memory_()

    @property
    def count(self) -> int:
        """How often an unreadable image was left out so far, over all data workers of this process."""
        return int(self._left_out.sum())

    def handle(self, error: UserError) -> None:
        """Counts and reports one image, or stops.

        Raises:
            UserError: the policy is "error".
        """
        self.name(error)
        self.leave_out()

    def leave_out(self) -> None:
        """Counts an image that was to be given; `name` has reported it, now or earlier."""
        self._left_out[_cell()] += 1

    def name(self, error: UserError) -> None:
        """Reports one image, or stops.

        Raises:
            UserError: the policy is "error".
        """
        if self.policy == "error":
            raise UserError(f"{error} Or go on without such images: --on_bad_image skip.") from error
        cell = _cell()
        self._named[cell] += 1
        mine = int(self._named[cell])
        if mine <= NAMED:
            logger.warning("Skipped: %s", error)
        elif str(mine).strip("0") == "1":  # 10, 100, 1000 …
            logger.warning("Data worker %d has skipped %d unreadable images; the last: %s", cell, mine, error)


def _cell() -> int:
    worker = get_worker_info()
    return worker.id % MAX_WORKERS if worker else 0


class SeededImages:
    """The part that sets and streams of images share.

    An item's augmentation is a function of (seed, epoch, item): it does not depend on the number of processes or data
    workers, nor on whether the run was interrupted.

    Args:
        transform: RGB image -> Tensor; draws from torch's generator only, as torchvision v2 does.
        seed: of the augmentation and the order.
        on_bad_image: "error" or "skip".
    """

    def __init__(self, transform: Callable[[Image.Image], Tensor], seed: int, on_bad_image: str) -> None:
        self.transform, self.seed, self.bad = transform, seed, BadImages(on_bad_image)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # persistent data workers must see it

    @property
    def epoch(self) -> int:
        """The epoch whose order and augmentation the items have."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """For the data loader, before each epoch."""
        self._epoch.fill_(epoch)

    @property
    def unreadable(self) -> int:
        """How often an unreadable image was left out so far, over all data workers of this process; with "skip"."""
        return self.bad.count

    def blank(self) -> Tensor:
        """The transform of a black picture: what stands for an unreadable one in a batch that is to keep its shape."""
        return self.augmented(Image.new("RGB", (32, 32)), "blank")

    def augmented(self, image: Image.Image, *identity: int | str) -> Tensor:
        """The transform of an image; its random numbers follow from the seed, the epoch and the item's identity."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_of(self.seed, self.epoch, *identity))
            return self.transform(image)
