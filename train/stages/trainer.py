"""HF Trainer for a stage: learning rates by part, and checkpoints that are restored in full or not at all."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import Trainer
from transformers.pytorch_utils import Conv1D
from transformers.trainer_utils import EvalLoopOutput

from sparse_vlm.errors import UserError, one_line
from sparse_vlm.weight_decay import decayed_weights
from train.stages.divergence import require_finite, require_finite_weights, weights_are_finite
from train.stages.stage import Part
from train.stages.variant import require_same_variant, write_variant


@contextmanager
def _restoring(checkpoint: str | None) -> Iterator[None]:
    """Damaged files make torch, safetensors and pickle raise nearly anything."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{checkpoint} cannot be restored ({one_line(error)}). If it is damaged, remove it: the run then goes on "
            "from the checkpoint before, or from the start."
        ) from error


@contextmanager
def _starting(still: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Options that do not fit the model, each other or what is installed make transformers raise nearly anything.

    Args:
        still: whether it is starting: what goes wrong later is no matter of the options.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not still():
            raise
        raise UserError(f"The training cannot start with these options: {one_line(error)}") from error


@contextmanager
def _weights_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards the model has the very tensors that it had, whatever it was converted to for an evaluation."""
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
    """Trainer whose optimizer has one learning rate per part (weight decay: `decayed_weights`), which restores a
    checkpoint in full or not at all, and only one of the same `variant`.

    It stops when training has diverged: at the next log, evaluation or checkpoint, which wait for the device anyway,
    and at the end.

    Args:
        parts: as given to `what_trains`.
        **trainer: transformers' Trainer arguments.
    """

    def __init__(self, parts: Sequence[Part], **trainer: Any) -> None:
        with _starting():
            super().__init__(**trainer)
        self.parts = parts
        self._begun = False  # the first epoch: from here on an error is no longer one of the options

    def variant(self) -> dict[str, Any]:
        """What a checkpoint and a run that goes on from it must have in common, as JSON values."""
        # transformers would go on with a new optimizer where it finds none in the form that it looks for
        return {"deepspeed_processes": self.args.world_size if self.is_deepspeed_enabled else 0}

    def restore(self, checkpoint: Path) -> None:
        """What a checkpoint has beside transformers' files: compares its variant with this run's.

        Raises:
            UserError: they differ, or the checkpoint holds none.
        """
        require_same_variant(checkpoint, self.variant())

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **options: Any) -> Any:
        if isinstance(resume_from_checkpoint, str):
            self.restore(Path(resume_from_checkpoint))
        with _starting(lambda: not self._begun):
            trained = super().train(resume_from_checkpoint, *args, **options)
        self._require_finite_weights()
        return trained

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        require_finite(logs, self.state.global_step)
        super().log(logs, start_time)

    def _save_checkpoint(self, *args: Any, **options: Any) -> None:
        self._require_finite_weights()
        super()._save_checkpoint(*args, **options)

    def _require_finite_weights(self) -> None:
        """The last step's loss says nothing yet of the weights that it left."""
        trained = [parameter for part in self.parts if part.learning_rate is not None for parameter in part.parameters]
        finite = self.accelerator.gather(weights_are_finite(trained))
        require_finite_weights(finite, self.state.global_step)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            opt_model: Any = self.model if model is None else model
            decayed = decayed_weights(opt_model, also=(Conv1D,))
            groups = []
            for part in self.parts:
                if part.learning_rate is None:
                    continue
                for decays in (True, False):
                    parameters = [p for p in part.parameters if (id(p) in decayed) == decays]
                    weight_decay = self.args.weight_decay if decays else 0.0
                    if parameters:
                        groups.append({"params": parameters, "lr": part.learning_rate, "weight_decay": weight_decay})
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, opt_model)
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def _get_dataloader(self, dataset: Dataset, *args: Any, **options: Any) -> DataLoader:
        if options.get("is_training", False):
            return super()._get_dataloader(dataset, *args, **options)
        # transformers would apply these to held-out data too. All of it is measured; persistent workers would be those
        # of the first held-out set for the second as well; several readers of a stream would each read other shards,
        # some of it twice and some of it never.
        settings: dict[str, Any] = {"dataloader_drop_last": False, "dataloader_persistent_workers": False}
        if isinstance(dataset, IterableDataset):
            settings["dataloader_num_workers"] = min(1, self.args.dataloader_num_workers)
        asked = {name: getattr(self.args, name) for name in settings}
        try:
            vars(self.args).update(settings)
            return super()._get_dataloader(dataset, *args, **options)
        finally:
            vars(self.args).update(asked)

    def evaluation_loop(self, *args: Any, **options: Any) -> EvalLoopOutput:
        model: Any = self.model
        with _weights_kept(model) if self.args.bf16_full_eval or self.args.fp16_full_eval else nullcontext():
            return super().evaluation_loop(*args, **options)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        target: Any = self.model if model is None else model
        with _restoring(resume_from_checkpoint):
            self.load_weights(resume_from_checkpoint, target)

    def load_weights(self, checkpoint: str, model: nn.Module) -> None:
        """Restore every weight of a checkpoint."""
        super()._load_from_checkpoint(checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _restoring(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _restoring(checkpoint):
            super()._load_rng_state(checkpoint)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.args.should_save:
            write_variant(Path(output_dir), self.variant())
        # The state that marks a checkpoint as complete is written next, by one process: all others must be done.
        self.accelerator.wait_for_everyone()

    def _run_epoch(self, *args: Any, **options: Any) -> None:
        self._begun = True
        # transformers would train one step more when it goes on from the last step of a run.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **options)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        if load_result.missing_keys or load_result.unexpected_keys:
            raise RuntimeError(f"The checkpoint does not fit the model: {load_result}")
