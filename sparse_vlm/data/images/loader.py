"""Data loaders whose order follows from (seed, epoch) alone; split over processes, resumed by transformers' Trainer."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, IterableDataset, Sampler
from transformers import TrainingArguments

from sparse_vlm.data.images.seeded import seed_of
from sparse_vlm.data.images.sets import IndexedImages
from sparse_vlm.data.images.streams import ImageStream
from sparse_vlm.errors import UserError


class EpochBatches(Sampler[list[int]]):
    """One process's batches of indices: a permutation of the set for each epoch, dealt to the processes.

    The n-th batches of all processes together are the n-th piece of the permutation: 2 processes with batches of 4
    see what 1 process with batches of 8 sees. The set itself is asked for the epoch, because accelerate tells samplers
    of it neither when it skips batches on several processes, nor before the first epoch of a resumed run.

    Args:
        dataset: knows seed and epoch.
        batch_size: of one process.
        rank, world_size: which process of how many.
        drop_last: leave out the last, smaller batch.
    """

    def __init__(
        self, dataset: IndexedImages, batch_size: int, rank: int = 0, world_size: int = 1, *, drop_last: bool = False
    ) -> None:
        self.dataset, self.batch_size, self.rank, self.world_size = dataset, batch_size, rank, world_size
        self.drop_last = drop_last

    def __len__(self) -> int:
        images, together = len(self.dataset), self.batch_size * self.world_size
        return images // together if self.drop_last else -(-images // together)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(seed_of(self.dataset.seed, self.dataset.epoch, "order"))
        order = torch.randperm(len(self.dataset), generator=generator)
        if short := -len(order) % self.world_size:  # every process needs a share of the last piece
            order = torch.cat([order, order.repeat(short)[:short]])
        for piece in order.split(self.batch_size * self.world_size)[: len(self)]:
            yield piece[self.rank :: self.world_size].tolist()


def train_loader(
    dataset: IndexedImages | ImageStream,
    args: TrainingArguments,
    collate: Callable[[list[Any]], Any],
    batch_size: int | None = None,
) -> DataLoader:
    """The data loader of one process, to be returned from `Trainer.get_train_dataloader`.

    Accelerate would read streams in the first process alone and split them there; here every process reads its own.

    Args:
        dataset: from `open_images`.
        args: the dataloader_* settings, the device, and which process of how many this is.
        collate: list of items -> batch.
        batch_size: instead of `args.train_batch_size`.

    Raises:
        UserError: an epoch is less than a batch of every process, where no smaller ones are allowed.
    """
    size = args.train_batch_size if batch_size is None else batch_size
    options: dict[str, Any] = {
        "collate_fn": collate,
        "num_workers": args.dataloader_num_workers,
        "pin_memory": args.dataloader_pin_memory,
        "persistent_workers": args.dataloader_persistent_workers,
        "multiprocessing_context": args.dataloader_multiprocessing_context,
        "prefetch_factor": args.dataloader_prefetch_factor,
    }
    rank, processes = args.process_index, args.world_size
    if isinstance(dataset, IterableDataset):
        loader = DataLoader(dataset.share(size, rank, processes), batch_size=size, **options)
    else:
        batches = EpochBatches(dataset, size, rank, processes, drop_last=args.dataloader_drop_last)
        if len(batches) == 0:
            raise UserError(
                f"--dataloader_drop_last True leaves nothing of {len(dataset)} images in batches of {size} in each of "
                f"{processes} processes. Make --per_device_train_batch_size smaller."
            )
        loader = DataLoader(dataset, batch_sampler=batches, **options)
    # One of one process: it is split already. What is left to accelerate is the device, the epoch, and skipping.
    return prepare_data_loader(
        loader, args.device, num_processes=1, process_index=0, put_on_device=True, dispatch_batches=False
    )
