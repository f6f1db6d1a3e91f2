"""The trainer of the stages that train on images alone: reproducible order, counted bad images."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from sparse_vlm.data.images.loader import train_loader
from sparse_vlm.data.images.sets import IndexedImages
from sparse_vlm.data.images.streams import ImageStream
from sparse_vlm.errors import UserError
from train.stages.stage import ParameterGroup
from train.stages.trainer import StageTrainer

ImageSource = IndexedImages | ImageStream


class ImageTrainer(StageTrainer):
    """StageTrainer on images whose order and augmentation a resumed run continues.

    With on_bad_image "skip", each log line has the number of failed reads so far, over all processes.

    Args:
        groups: as given to `set_trainable`.
        images: the training images; their loader is `train_loader`.
        **trainer: transformers' Trainer arguments.

    Raises:
        UserError: an option that only language models have, or that has no effect.
    """

    def __init__(self, groups: Sequence[ParameterGroup], *, images: ImageSource, **trainer: Any) -> None:
        if trainer["args"].label_smoothing_factor:
            raise UserError(
                "--label_smoothing_factor is for language models. Leave it out (train.finetune has --smoothing)."
            )
        if (strategy := trainer["args"].train_sampling_strategy) != "random":
            raise UserError(
                f"--train_sampling_strategy {strategy} has no effect: --seed alone determines the images' order. "
                "Leave it out."
            )
        super().__init__(groups, train_dataset=images, **trainer)
        self.images = images

    def get_train_dataloader(self) -> DataLoader:
        return train_loader(self.images, self.args, self.data_collator, self._train_batch_size)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self.images.bad.policy == "skip":
            unreadable = torch.tensor(self.images.unreadable, device=self.args.device)
            logs["unreadable_images"] = int(self.accelerator.reduce(unreadable, "sum"))
        super().log(logs, start_time)
