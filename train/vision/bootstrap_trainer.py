"""The trainer of bootstrapping: logged loss terms, moving average of the student, evaluation, variant."""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sparse_vlm.bootstrap import BootstrapTask
from sparse_vlm.bootstrap.roi_statistics import RoIStatistics, roi_numbers, roi_statistics
from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.checkpoints import load_strictly, read_weights
from sparse_vlm.fingerprint import fingerprint
from train.stages.divergence import require_finite
from train.stages.drawn_counts import DrawnCounts
from train.stages.stage import ParameterGroup
from train.vision.image_trainer import ImageSource, ImageTrainer
from train.vision.monitor import ZeroShotTask, measure_alignment, measure_zero_shot

logger = logging.getLogger(__name__)
EMA_FILE = "ema.safetensors"
# The metrics of an evaluation, and those that need labelled images.
MEASURED = ("cosine", "centered_cosine", "roi_size", "roi_spread", "roi_outside")
ZERO_SHOT = ("zero_shot_student", "zero_shot_teacher")


class BootstrapTrainer(ImageTrainer):
    """ImageTrainer for a `BootstrapTask`.

    - Each log line has the terms of the loss, the cosine and the images per second besides the loss.
    - `evaluate` measures the alignment and the RoIs on `eval_dataset`, and the zero-shot accuracy.
    - A checkpoint also holds ema.safetensors (float32).

    Args:
        groups: as given to `set_trainable`.
        task: the model.
        images: the training images.
        ema_decay: decay of the moving average of the student's weights, reached by timm's warm-up; None: off.
        zero_shot: the zero-shot classification; None: off.
        drawn: the number of tokens of each step.
        evaluated_counts: numbers of tokens that an evaluation measures besides the student's own.
        **trainer: transformers' Trainer arguments.
    """

    def __init__(
        self,
        groups: Sequence[ParameterGroup],
        *,
        task: BootstrapTask,
        images: ImageSource,
        ema_decay: float | None = None,
        zero_shot: ZeroShotTask | None = None,
        drawn: DrawnCounts,
        evaluated_counts: Sequence[int] = (),
        **trainer: Any,
    ) -> None:
        super().__init__(groups, images=images, model=task, **trainer)
        self.task, self.zero_shot, self.drawn, self.evaluated_counts = task, zero_shot, drawn, evaluated_counts
        self.ema: ModelEmaV3 | None = None
        if ema_decay is not None:
            self.ema = ModelEmaV3(task.student, ema_decay, use_warmup=True, dtype=torch.float32)
            self.add_callback(EmaUpdate(self.ema, task.student))
        self._terms: list[dict[str, Tensor]] = []
        self._since: float | None = None  # when the count of seen images began
        self._seen = 0
        self._teacher_accuracy: float | None = None
        # Not the position embeddings: resampled on another processor, they may differ in the last bit.
        self._teacher_weights = fingerprint(task.teacher.trunk.blocks)

    @property
    def student(self) -> SparseFormer:
        """The student that is evaluated and published: the moving average if there is one, else the trained weights."""
        return self.task.student if self.ema is None else self.ema.module

    def published(self) -> str:
        """Describe `student` after training, for the log."""
        best = self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None
        step = self.state.best_global_step if best else self.state.global_step
        kind = "the trained weights" if self.ema is None else f"the moving average (decay {self.ema.decay:g})"
        return f"{kind} of step {step}" + (" (best alignment)" if best else "")

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        if self._since is None:
            self._since = time.monotonic()
        self._seen += len(inputs["pixel_values"])
        tokens = self.drawn.at(self.state.global_step)
        loss, outputs = super().compute_loss(model, {**inputs, "tokens": tokens}, True, num_items_in_batch)
        terms = {name: value.detach().mean() for name, value in outputs.items() if name != "loss"}
        if tokens is not None:
            terms["tokens"] = loss.new_tensor(tokens)
        self._terms.append(terms)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._terms and self._since is not None:
            means = torch.stack([torch.stack(list(terms.values())) for terms in self._terms]).mean(dim=0)
            names, self._terms = list(self._terms[0]), []
            logs |= dict(zip(names, self.accelerator.reduce(means, "mean").tolist(), strict=True))
            images = self._seen * self.args.world_size
            logs["images_per_second"] = round(images / (time.monotonic() - self._since), 2)
            self._since, self._seen = time.monotonic(), 0
        super().log(logs, start_time)

    def measure(self) -> dict[str, float]:
        """Measure the alignment, the RoIs and the zero-shot accuracy of the student. All processes must call this.

        Returns:
            cosine, centered_cosine, images, unreadable, roi_size, roi_spread and roi_outside; cosine_N_tokens for each
            of `evaluated_counts`; with zero-shot images also zero_shot_student, zero_shot_teacher, zero_shot_images and
            zero_shot_unreadable.

        Raises:
            UserError: a value is not finite: training has diverged.
        """
        student, gather = self.student.to(self.args.device).eval(), self.accelerator.gather_for_metrics
        batches = self._batches(self.eval_dataset)
        alignment = measure_alignment(self.task, student, batches, gather, self.evaluated_counts)
        rois = alignment.rois
        measured = {
            "cosine": alignment.cosine,
            "centered_cosine": alignment.centered_cosine,
            "images": alignment.images,
            "unreadable": alignment.unreadable,
        }
        measured |= {f"cosine_{count}_tokens": value for count, value in alignment.cosine_by_tokens.items()}
        measured |= _named(rois)
        require_finite(measured, self.state.global_step)
        if (collapse := rois.collapse()) is not None and self.is_world_process_zero():
            logger.warning("The RoIs have collapsed at step %d: %s", self.state.global_step, collapse)
        return measured if self.zero_shot is None else measured | self._measure_zero_shot(self.zero_shot)

    @torch.no_grad()
    def require_finite_rois(self, images: Sequence[Image.Image]) -> None:
        """Check the student's RoIs on some images: a finite loss does not imply finite RoIs.

        Raises:
            UserError: some RoIs are not finite.
        """
        student = self.student.to(self.args.device).eval()
        pixels = torch.stack([student.transform(image) for image in images]).to(self.args.device)
        require_finite(_named(roi_statistics(roi_numbers(student(pixels).rois[-1]))), self.state.global_step)

    def _measure_zero_shot(self, zero_shot: ZeroShotTask) -> dict[str, float]:
        student, gather = self.student, self.accelerator.gather_for_metrics
        classes, images = zero_shot.classes, zero_shot.images
        if self._teacher_accuracy is None:  # it never changes
            teacher = measure_zero_shot(self.task.target, classes, self._batches(images), gather)
            self._teacher_accuracy = teacher.value
        own = measure_zero_shot(lambda x: student(x).pooled, classes, self._batches(images), gather)
        measured = {"student": own.value, "teacher": self._teacher_accuracy}
        measured |= {"images": own.images, "unreadable": own.unreadable}
        return {f"zero_shot_{name}": value for name, value in measured.items()}

    def _batches(self, dataset: Any) -> Iterator[dict[str, Tensor]]:
        return (self._prepare_inputs(batch) for batch in self.get_eval_dataloader(dataset))

    def evaluate(
        self,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.measure().items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._since, self._seen = None, 0  # images_per_second is about training alone
        return metrics

    def variant(self) -> dict[str, Any]:
        groups = {group.name: sum(p.numel() for p in group.parameters) for group in self.groups}
        own = {"student": self.task.student.config.to_dict(), "groups": groups, "ema": self.ema is not None}
        own |= {"normalize_targets": self.task.normalization, "grid_decoder": bool(self.task.decoders)}
        own |= {"teacher_weights": self._teacher_weights, "token_density": self.drawn.density}
        return super().variant() | own

    def restore(self, checkpoint: Path) -> None:
        super().restore(checkpoint)
        self._load_ema(checkpoint)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save and output_dir is not None and self.ema is not None:
            weights = {name: value.contiguous() for name, value in self.ema.module.state_dict().items()}
            save_file(weights, Path(output_dir) / EMA_FILE, metadata={"format": "pt"})

    def _load_ema(self, checkpoint: Path) -> None:
        if self.ema is not None:
            load_strictly(self.ema.module, read_weights(checkpoint / EMA_FILE), source=str(checkpoint / EMA_FILE))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_ema(Path(str(self.state.best_model_checkpoint)))


def _named(rois: RoIStatistics) -> dict[str, float]:
    return {f"roi_{name}": value for name, value in asdict(rois).items()}


class EmaUpdate(TrainerCallback):
    """Update a moving average after each optimizer step."""

    def __init__(self, ema: ModelEmaV3, student: SparseFormer) -> None:
        self.ema, self.student = ema, student

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.ema.to(args.device)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.ema.update(self.student, step=state.global_step)
