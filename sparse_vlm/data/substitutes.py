"""Substitutes for bad items of an indexed data set."""

import random
from collections.abc import Callable
from itertools import chain
from typing import TypeVar

import torch

from sparse_vlm.data.bad_items import BadItems
from sparse_vlm.data.images.seeded import seed_of
from sparse_vlm.errors import UserError

Item = TypeVar("Item")
DRAWS = 64  # random substitutes to try before the whole set is searched


class Substitutes:
    """Replaces bad items of a data set by good ones.

    A substitute is drawn at random and depends only on the seeds and the index, not on the process or the data worker
    that reads it. Data workers and their parent share which items are bad, so each of those is read once.

    Args:
        count: number of items.
        bad: the policy.
    """

    def __init__(self, count: int, bad: BadItems) -> None:
        self.bad = bad
        self._known = torch.zeros(count, dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self._known)

    def read(self, index: int, read: Callable[[int], Item], *seeds: int) -> tuple[int, Item]:
        """Return the item at `index`, or its substitute if it is bad and the policy allows that, and its index.

        Args:
            index: of the item.
            read: index -> item; raises a UserError if it is bad.
            *seeds: of the substitute.

        Raises:
            UserError: the policy forbids bad items, or all are bad.
        """
        if (item := self._good(index, read)) is not None:
            return index, item
        self.bad.count_one()
        return self._substitute(index, read, *seeds)

    def _good(self, index: int, read: Callable[[int], Item]) -> Item | None:
        """Return the item, or None if it is bad."""
        if self._known[index]:
            return None
        try:
            return read(index)
        except UserError as error:
            self.bad.report(error)
            self._known[index] = True
            return None

    def _substitute(self, index: int, read: Callable[[int], Item], *seeds: int) -> tuple[int, Item]:
        """Return the first good item and its index: among random draws, then among all in order."""
        rng = random.Random(seed_of(*seeds, "substitute", index))
        drawn = [rng.randrange(len(self)) for _ in range(DRAWS + 1)]
        for found in chain(drawn, range(drawn[-1], len(self)), range(drawn[-1])):
            if (item := self._good(found, read)) is not None:
                return found, item
        raise UserError(f"None of the {len(self)} {self.bad.items} can be read.")
