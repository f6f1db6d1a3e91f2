"""The order of the rows in an epoch, and the number of visual tokens of each step."""

import math
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from sparse_vlm.data.conversations.dataset import Drawn
from sparse_vlm.data.images.seeded import seed_of
from train.stages.drawn_counts import DrawnCounts
from train.stages.stage import StageArguments


class SeededOrder(Sampler[int]):
    """Order rows at random. The order depends only on (seed, epoch).

    transformers' samplers draw it from the global random numbers, so that an interrupted run would resume with other
    rows.

    Args:
        count: number of rows.
        seed: seed of the order.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.epoch = count, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; the data loader calls this before each one."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return iter(self.ordered(torch.Generator().manual_seed(seed_of(self.seed, self.epoch, "order"))))

    def ordered(self, generator: torch.Generator) -> list[int]:
        """Return the rows in an order drawn from a generator."""
        return torch.randperm(self.count, generator=generator).tolist()


class LengthGroups(SeededOrder):
    """Order rows so that those of similar lengths come together, as transformers' LengthGroupedSampler does.

    Args:
        batch_size: rows of one process in one step.
        lengths: the lengths of all rows.
        seed: seed of the order.
    """

    def __init__(self, batch_size: int, lengths: Sequence[int], seed: int) -> None:
        super().__init__(len(lengths), seed)
        self.batch_size, self.lengths = batch_size, lengths

    def ordered(self, generator: torch.Generator) -> list[int]:
        return get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)


class DrawnOrder(Sampler[Drawn]):
    """Request each row of an order with the number of visual tokens of its step.

    All rows of a step have the same number, in all processes and all batches that accumulate. Several processes need
    full batches, so the last ones are filled up with the first rows; accelerate would do the same, but with the first
    step's number of tokens.

    Args:
        order: the rows of an epoch.
        drawn: the number of tokens of each step.
        args: batch size, processes, accumulation, and whether an incomplete last batch is dropped.
    """

    def __init__(self, order: Any, drawn: DrawnCounts, args: StageArguments) -> None:
        self.order, self.drawn, self.epoch = order, drawn, 0
        rows = args.train_batch_size * args.world_size
        whole = math.floor if args.dataloader_drop_last else math.ceil
        batches = whole(len(order) / rows)
        self.count = len(order) if args.world_size == 1 else batches * rows
        self.rows_per_step = rows * args.gradient_accumulation_steps
        self.steps_per_epoch = max(1, math.ceil(batches / args.gradient_accumulation_steps))

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; the data loader calls this before each one."""
        self.epoch = epoch
        if isinstance(self.order, SeededOrder):
            self.order.set_epoch(epoch)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Drawn]:
        first = self.epoch * self.steps_per_epoch
        for place, row in enumerate(islice(cycle(self.order), self.count)):
            yield Drawn(row, self.drawn.count_at(first + place // self.rows_per_step))
