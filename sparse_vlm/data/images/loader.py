"""Data loaders whose order depends on (seed, epoch) alone; transformers' Trainer can resume them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, IterableDataset, Sampler

from sparse_vlm.data.images.seeded import seed_of
from sparse_vlm.data.images.sets import IndexedImages
from sparse_vlm.data.images.streams import ImageStream
from sparse_vlm.errors import UserError, optional_import

if TYPE_CHECKING:
    from transformers import TrainingArguments


class EpochBatches(Sampler[list[int]]):
    """Batches of indices for one process: a permutation of the set per epoch, dealt to the processes.

    The n-th batches of all processes together are the n-th piece of the permutation, so 2 processes with batches of 4
    see the same images per step as 1 process with batches of 8. The epoch is that of the set, because accelerate does
    not pass it to samplers when it skips batches on several processes, nor before the first epoch of a resumed run.

    Args:
        dataset: provides seed and epoch.
        batch_size: per process.
        rank, world_size: index of the process, and the number of processes.
        drop_last: drop the last, smaller batch.
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
        if short := -len(order) % self.world_size:  # each process needs a share of the last piece
            order = torch.cat([order, order.repeat(short)[:short]])
        for piece in order.split(self.batch_size * self.world_size)[: len(self)]:
            yield piece[self.rank :: self.world_size].tolist()


def train_loader(
    dataset: IndexedImages | ImageStream,
    args: TrainingArguments,
    collate: Callable[[list[Any]], Any],
    batch_size: int | None = None,
) -> DataLoader:
    """Return the data loader of one process, for `Trainer.get_train_dataloader`.

    accelerate would read a stream in the first process only and split its batches; here each process reads its share.

    Args:
        dataset: from `open_images`.
        args: provides the dataloader_* settings, the device and the rank of this process.
        collate: list of items -> batch.
        batch_size: None: `args.train_batch_size`.
    """
    with optional_import("The data loader of a training", "bootstrap"):
        from accelerate.data_loader import prepare_data_loader
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
                f"--dataloader_drop_last True leaves no batch: {len(dataset)} images in batches of {size} for each of "
                f"{processes} processes. Lower --per_device_train_batch_size."
            )
        loader = DataLoader(dataset, batch_sampler=batches, **options)
    # Already sharded, hence "one process". accelerate adds the device, the epoch and the skipping of a resumed run.
    return prepare_data_loader(
        loader, args.device, num_processes=1, process_index=0, put_on_device=True, dispatch_batches=False
    )
