"""What the stages that train on images alone share: the order goes on after an interruption, bad images are counted."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from sparse_vlm.data.images.loader import train_loader
from sparse_vlm.data.images.sets import IndexedImages
from sparse_vlm.data.images.streams import ImageStream
from sparse_vlm.errors import UserError
from train.stages.stage import Part
from train.stages.trainer import StageTrainer

ImageSource = IndexedImages | ImageStream


class ImageTrainer(StageTrainer):
    """StageTrainer whose images come in an order, and with an augmentation, that a resumed run continues. With
    on_bad_image "skip" each log line has the number of reads that failed so far, over all processes.

    Args:
        parts: as given to `what_trains`.
        images: to train on; their loader is `train_loader`.
        **trainer: transformers' Trainer arguments.

    Raises:
        UserError: a setting that only language models have, or that would change nothing.
    """

    def __init__(self, parts: Sequence[Part], *, images: ImageSource, **trainer: Any) -> None:
        if trainer["args"].label_smoothing_factor:
            raise UserError(
                "--label_smoothing_factor is for language models. Leave it out (train.finetune has --smoothing)."
            )
        if (strategy := trainer["args"].train_sampling_strategy) != "random":
            raise UserError(
                f"--train_sampling_strategy {strategy} would change nothing: --seed alone makes the images' order. "
                "Leave it out."
            )
        super().__init__(parts, train_dataset=images, **trainer)
        self.images = images

    def get_train_dataloader(self) -> DataLoader:
        return train_loader(self.images, self.args, self.data_collator, self._train_batch_size)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self.images.bad.policy == "skip":
            unreadable = torch.tensor(self.images.unreadable, device=self.args.device)
            logs["unreadable_images"] = int(self.accelerator.reduce(unreadable, "sum"))
        super().log(logs, start_time)
