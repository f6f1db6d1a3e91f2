"""Data loaders with transformers' Trainer: a resumed run sees the same pixels as an uninterrupted one."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    default_data_collator,
)

from sparse_vlm.data.images.loader import EpochBatches, train_loader
from sparse_vlm.data.images.sets import ImageFolder
from sparse_vlm.data.images.sources import open_images
from sparse_vlm.errors import UserError

crop = v2.Compose([v2.RandomResizedCrop(8), v2.PILToTensor(), v2.ToDtype(torch.float32)])


class PixelRecorder(nn.Module):
    """A model that records a hash of the pixels of each training step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.batches: list[str] = []

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        self.batches.append(hashlib.blake2b(pixel_values.numpy().tobytes()).hexdigest())
        return {"loss": self.weight * pixel_values.mean()}


class ImageTrainer(Trainer):
    """The Trainer of a training stage."""

    def get_train_dataloader(self) -> DataLoader:
        return train_loader(self.train_dataset, self.args, self.data_collator, self._train_batch_size)


class StopAt(TrainerCallback):
    """Interrupt training right after the checkpoint of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        control.should_save = control.should_training_stop = state.global_step == self.step


def train(
    spec: str, output_dir: Path, *, stop_at: int | None = None, resume: bool = False, workers: int = 0
) -> list[str]:
    args = TrainingArguments(
        output_dir=str(output_dir),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=6,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        dataloader_num_workers=workers,
        remove_unused_columns=False,
    )
    model = PixelRecorder()
    callbacks = [] if stop_at is None else [StopAt(stop_at)]
    images = open_images(spec, crop, seed=5)
    trainer = ImageTrainer(
        model=model, args=args, train_dataset=images, data_collator=default_data_collator, callbacks=callbacks
    )
    trainer.train(resume_from_checkpoint=resume or None)
    return model.batches


# 10 images make 5 batches or 3 steps per epoch: step 2 is in the first epoch, 3 is its last, and 5 is in the second.
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "hf", "wds", "wds-resampled", "hf-stream"])
@pytest.mark.parametrize(("stop_at", "workers"), [(2, 0), (3, 0), (5, 2)])
def test_a_resumed_run_sees_the_same_pixels(
    kind: str, stop_at: int, workers: int, image_folder: Path, tables: Path, shards: str, tmp_path: Path
) -> None:
    spec = str(image_folder) if kind == "folder" else f"{kind}:{shards if 'wds' in kind else tables / 'saved'}"
    whole = train(spec, tmp_path / "whole", workers=workers)
    assert len(whole) == len(set(whole)) == 10
    first = train(spec, tmp_path / "halves", stop_at=stop_at, workers=workers)
    assert first == whole[: len(first)]
    second = train(spec, tmp_path / "halves", resume=True, workers=workers)
    assert first + second == whole
    assert min(len(first), len(second)) > 0


def test_processes_together_see_what_one_would_see(image_folder: Path) -> None:
    dataset = ImageFolder(image_folder, crop)
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        alone = list(EpochBatches(dataset, 4))
        pair = [list(EpochBatches(dataset, 2, rank, 2)) for rank in (0, 1)]
        assert [sorted(a + b) for a, b in zip(*pair, strict=True)] == [sorted(batch) for batch in alone]
        assert sorted(index for batch in alone for index in batch) == list(range(10))


def lengths(dataset: ImageFolder, batch_size: int, world_size: int, *, drop_last: bool) -> Iterator[list[int]]:
    for rank in range(world_size):
        batches = EpochBatches(dataset, batch_size, rank, world_size, drop_last=drop_last)
        assert len(list(batches)) == len(batches)
        yield [len(batch) for batch in batches]


def test_every_process_has_the_same_batch_sizes(image_folder: Path) -> None:
    dataset = ImageFolder(image_folder, crop)
    assert list(lengths(dataset, 2, 3, drop_last=False)) == [[2, 2]] * 3  # 10 images, two of them twice
    assert list(lengths(dataset, 2, 3, drop_last=True)) == [[2]] * 3
    assert list(lengths(dataset, 4, 1, drop_last=False)) == [[4, 4, 2]]
    assert list(lengths(dataset, 1, 16, drop_last=False)) == [[1]] * 16
    assert sorted({i for r in range(16) for batch in EpochBatches(dataset, 1, r, 16) for i in batch}) == list(range(10))


def test_an_epoch_without_a_batch_is_an_error(image_folder: Path, tmp_path: Path) -> None:
    args = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=16, dataloader_drop_last=True, use_cpu=True, report_to="none"
    )
    with pytest.raises(UserError, match="leaves no batch: 10 images in batches of 16 for each of 1 processes"):
        train_loader(ImageFolder(image_folder, crop), args, default_data_collator)


def test_the_order_changes_with_epoch_and_seed(image_folder: Path) -> None:
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0)):
        dataset = ImageFolder(image_folder, crop, seed=seed)
        dataset.set_epoch(epoch)
        orders.append(next(iter(EpochBatches(dataset, 10))))
    assert orders[0] == orders[3]
    assert len({tuple(order) for order in orders}) == 3
