"""HF Trainer for a stage: one learning rate per parameter group, and strict checkpoints."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import Trainer
from transformers.pytorch_utils import Conv1D
from transformers.trainer_utils import EvalLoopOutput

from sparse_vlm.dtypes import name_of
from sparse_vlm.errors import UserError, one_line
from sparse_vlm.weight_decay import decayed_weights
from train.stages.cpu import attention_kernels
from train.stages.divergence import require_finite, require_finite_weights, weights_are_finite
from train.stages.precision import compute_dtype
from train.stages.stage import ParameterGroup
from train.stages.variant import require_same_variant, write_variant


@contextmanager
def _restore_errors(checkpoint: str | None) -> Iterator[None]:
    """Turn what torch, safetensors and pickle raise on damaged files, which is nearly anything, into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{checkpoint} cannot be restored ({one_line(error)}). If it is damaged, remove it: the run then resumes "
            "from the previous checkpoint, or starts from the beginning."
        ) from error


@contextmanager
def _start_errors(starting: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Turn what transformers raises on options that do not fit, which is nearly anything, into a UserError.

    Args:
        starting: tells whether training has yet to begin. Later errors do not come from the options and pass through.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not starting():
            raise
        raise UserError(f"Training cannot start with these options: {one_line(error)}") from error


@contextmanager
def _preserved_weights(model: nn.Module) -> Iterator[None]:
    """Give the model its own tensors back after an evaluation that converts them."""
    modules = list(model.modules())
    parameters = [(parameter, parameter.data) for parameter in model.parameters()]
    buffers = [(module, dict(module._buffers)) for module in modules]
    try:
        yield
    finally:
        for parameter, data in parameters:
            parameter.data = data
        for module, kept in buffers:
            module._buffers.update(kept)


class StageTrainer(Trainer):
    """Trainer with one learning rate per parameter group and strict checkpoints.

    Weight decay follows `decayed_weights`. A checkpoint is restored in full or not at all, and only if its `variant` is
    this run's.

    Training stops when it has diverged: at the next log, evaluation or checkpoint, which wait for the device anyway,
    and at the end.

    Args:
        groups: as given to `set_trainable`.
        **trainer: transformers' Trainer arguments.
    """

    def __init__(self, groups: Sequence[ParameterGroup], **trainer: Any) -> None:
        with _start_errors():
            super().__init__(**trainer)
        self.groups = groups
        self._begun = False  # set in the first epoch: from then on, errors do not come from the options

    def variant(self) -> dict[str, Any]:
        """Return the JSON values that a checkpoint and the run that resumes from it must share."""
        # transformers would continue with a new optimizer if it does not find one in the expected form.
        processes = self.args.world_size if self.is_deepspeed_enabled else 0
        return {"deepspeed_processes": processes, "dtype": name_of(compute_dtype(self.args))}

    def restore(self, checkpoint: Path) -> None:
        """Restore what a checkpoint holds besides transformers' files; here: compare the variants.

        Raises:
            UserError: they differ, or the checkpoint has none.
        """
        require_same_variant(checkpoint, self.variant())

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **options: Any) -> Any:
        if isinstance(resume_from_checkpoint, str):
            self.restore(Path(resume_from_checkpoint))
        with _start_errors(lambda: not self._begun):
            trained = super().train(resume_from_checkpoint, *args, **options)
        self._require_finite_weights()
        return trained

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **options: Any) -> Tensor:
        tokens = inputs["input_ids"].shape[-1] if "input_ids" in inputs else 0  # an image's tokens are few
        with attention_kernels(self.args.device, compute_dtype(self.args), tokens):
            return super().training_step(model, inputs, *args, **options)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        require_finite(logs, self.state.global_step)
        super().log(logs, start_time)

    def _save_checkpoint(self, *args: Any, **options: Any) -> None:
        self._require_finite_weights()
        super()._save_checkpoint(*args, **options)

    def _require_finite_weights(self) -> None:
        """A finite loss does not imply finite weights after the step."""
        trained = [p for group in self.groups if group.learning_rate is not None for p in group.parameters]
        finite = self.accelerator.gather(weights_are_finite(trained))
        require_finite_weights(finite, self.state.global_step)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            opt_model: Any = self.model if model is None else model
            decayed = decayed_weights(opt_model, also=(Conv1D,))
            options_per_group = []
            for group in self.groups:
                if group.learning_rate is None:
                    continue
                for decays in (True, False):
                    parameters = [p for p in group.parameters if (id(p) in decayed) == decays]
                    decay = self.args.weight_decay if decays else 0.0
                    if parameters:
                        options_per_group.append(
                            {"params": parameters, "lr": group.learning_rate, "weight_decay": decay}
                        )
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, opt_model)
            self.optimizer = optimizer_class(options_per_group, **options)
        return self.optimizer

    def _get_dataloader(self, dataset: Dataset, *args: Any, **options: Any) -> DataLoader:
        if options.get("is_training", False):
            return super()._get_dataloader(dataset, *args, **options)
        # transformers would apply the training's settings to held-out data too. But all of it is to be measured;
        # persistent workers would serve the first held-out set again in place of the second; and several readers of a
        # stream would read some shards twice and others never.
        settings: dict[str, Any] = {"dataloader_drop_last": False, "dataloader_persistent_workers": False}
        if isinstance(dataset, IterableDataset):
            settings["dataloader_num_workers"] = min(1, self.args.dataloader_num_workers)
        original = {name: getattr(self.args, name) for name in settings}
        try:
            vars(self.args).update(settings)
            return super()._get_dataloader(dataset, *args, **options)
        finally:
            vars(self.args).update(original)

    def evaluation_loop(self, *args: Any, **options: Any) -> EvalLoopOutput:
        model: Any = self.model
        with _preserved_weights(model) if self.args.bf16_full_eval or self.args.fp16_full_eval else nullcontext():
            return super().evaluation_loop(*args, **options)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        target: Any = self.model if model is None else model
        with _restore_errors(resume_from_checkpoint):
            self.load_weights(resume_from_checkpoint, target)

    def load_weights(self, checkpoint: str, model: nn.Module) -> None:
        """Restore every weight of a checkpoint."""
        super()._load_from_checkpoint(checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _restore_errors(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _restore_errors(checkpoint):
            super()._load_rng_state(checkpoint)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.args.should_save:
            write_variant(Path(output_dir), self.variant())
        # One process writes next the state that marks a checkpoint as complete: all others must be done.
        self.accelerator.wait_for_everyone()

    def _run_epoch(self, *args: Any, **options: Any) -> None:
        self._begun = True
        # transformers would train one step more when it resumes from the last step of a run.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **options)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        if load_result.missing_keys or load_result.unexpected_keys:
            raise RuntimeError(f"The checkpoint does not fit the model: {load_result}")
