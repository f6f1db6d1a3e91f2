"""The model with its loss, and the trainer, of supervised fine-tuning."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor, nn

from sparse_vlm.data.images.labels import LabelledImages
from sparse_vlm.data.images.sets import HeldOutImages
from sparse_vlm.encoder.cortex import Cortex
from sparse_vlm.integrations.timm import TimmSparseFormer
from sparse_vlm.recompute import RecomputesBlocks
from train.stages.stage import ParameterGroup
from train.vision.image_trainer import ImageTrainer

COUNTS = ("classes_with_auroc", "images", "unreadable")  # in the metrics of a measurement


class FinetuneTask(RecomputesBlocks, nn.Module):
    """A classifier and its loss.

    Args:
        model: the classifier; its head has one output per class.
        several: True if an image may have several classes (binary cross-entropy), False if it has exactly one
            (cross-entropy).
        smoothing: label smoothing, in training only.
        mixup: mixes the images of a training batch, and smooths their labels; None: off.
    """

    def __init__(self, model: TimmSparseFormer, *, several: bool, smoothing: float, mixup: Mixup | None = None) -> None:
        super().__init__()
        self.model, self.several, self.smoothing, self.mixup = model, several, smoothing, mixup

    @property
    def recomputed_cortex(self) -> Cortex:
        """The cortex whose blocks `--activation_checkpointing` recomputes."""
        return self.model.cortex

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """float[B, 3, H, W] and int64[B] or float[B, K] -> {"loss": float[], "logits": float[B, K]}."""
        smoothing = self.smoothing if self.training else 0.0
        if self.mixup is not None and self.training:
            pixel_values, labels = self.mixup(pixel_values, labels)
            smoothing = 0.0  # the mixed labels are smoothed already
        logits = self.model(pixel_values).float()
        return {"loss": self.loss(logits, labels, smoothing), "logits": logits}

    def loss(self, logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """Mean loss over the images, float[]."""
        if self.several:
            return F.binary_cross_entropy_with_logits(logits, labels * (1 - smoothing) + smoothing / 2)
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)


class FinetuneTrainer(ImageTrainer):
    """ImageTrainer that resumes only with the same classes and encoder, and evaluates on the readable images.

    Args:
        groups: as given to `set_trainable`.
        task: the model.
        images: the training images.
        held_out: the images of evaluations; None: no evaluation.
        test: images to measure at the end alone; None: not measured.
        **trainer: transformers' Trainer arguments; compute_metrics comes from `over_readable`.
    """

    def __init__(
        self,
        groups: Sequence[ParameterGroup],
        *,
        task: FinetuneTask,
        images: LabelledImages,
        held_out: HeldOutImages | None,
        test: HeldOutImages | None = None,
        **trainer: Any,
    ) -> None:
        super().__init__(groups, images=images, model=task, eval_dataset=held_out, **trainer)
        self.task, self.labels, self.held_out = task, images.labels, held_out
        self.test = test

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, Any, Any]:
        # transformers would average the loss over unreadable images too; here the loss is one of the metrics.
        readable = self._prepare_input(inputs.pop("readable"))
        _, logits, labels = super().prediction_step(model, inputs, False, ignore_keys)
        return None, logits, (labels, readable)

    def measure(self, images: HeldOutImages | None) -> dict[str, Any] | None:
        """Measure the classifier: top-1 or AUROC, and the numbers of classes and images; None without images."""
        if images is None:
            return None
        prefix = "test" if images is self.test else "eval"
        metrics = self.evaluate(images, metric_key_prefix=prefix)
        named = {name.removeprefix(f"{prefix}_"): value for name, value in metrics.items()}
        return {name: value for name, value in named.items() if name in COUNTS or name.startswith(("auroc", "top1"))}

    def variant(self) -> dict[str, Any]:
        labels = {"classes": self.labels.classes, "several_per_image": self.labels.multi_label}
        return super().variant() | labels | {"encoder": self.task.model.config.to_dict()}
