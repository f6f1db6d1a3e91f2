"""The policy for bad items of a data set: stop, or skip, name the first few and count all."""

import logging

import torch
from torch.utils.data import get_worker_info

from sparse_vlm.errors import UserError, check_choice

logger = logging.getLogger(__name__)
CHOICES = ("error", "skip")
NAMED = 5  # bad items that each data worker reports by name; it only counts further ones
MAX_WORKERS = 1024


class BadItems:
    """The policy for bad items. Data workers count in memory that they share with their parent.

    Args:
        policy: "error" stops with the item's name; "skip" logs the first few names and counts all.
        option: the option that sets the policy.
        items: what the items are, in messages, e.g. "images".
        bad: what is wrong with them, in messages, e.g. "unreadable".
    """

    def __init__(self, policy: str, option: str, items: str, bad: str) -> None:
        check_choice(option, policy, CHOICES)
        self.policy, self.option, self.items, self.bad = policy, option, items, bad
        # One cell per worker, because additions of two processes to the same cell could be lost.
        self._skipped, self._named = torch.zeros(2, MAX_WORKERS, dtype=torch.int64).share_memory_()

    @property
    def count(self) -> int:
        """Number of bad items skipped so far, over all data workers of this process."""
        return int(self._skipped.sum())

    def handle(self, error: UserError) -> None:
        """Report and count one item, or raise an error if that is the policy."""
        self.report(error)
        self.count_one()

    def count_one(self) -> None:
        """Count a skipped item that `report` has reported, now or earlier."""
        self._skipped[_cell()] += 1

    def report(self, error: UserError) -> None:
        """Log one item, or raise an error if that is the policy."""
        if self.policy == "error":
            raise UserError(f"{error} Or skip such {self.items}: {self.option} skip.") from error
        self.log(error)

    def log(self, error: UserError) -> None:
        """Log one item, whatever the policy is."""
        cell = _cell()
        self._named[cell] += 1
        reported = int(self._named[cell])
        if reported <= NAMED:
            logger.warning("Skipped: %s", error)
        elif str(reported).strip("0") == "1":  # 10, 100, 1000 …
            logger.warning(
                "Data worker %d has skipped %d %s %s; the last: %s", cell, reported, self.bad, self.items, error
            )


def _cell() -> int:
    worker = get_worker_info()
    return worker.id % MAX_WORKERS if worker else 0
