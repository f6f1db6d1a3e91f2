"""What every training stage shares: resume, parameter groups, the report of what trains.

Knows nothing of the model. A stage makes its model, data and parts, and calls `run`.
"""

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import PreTrainedModel, Trainer, set_seed
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.pytorch_utils import Conv1D

from sparse_vlm.errors import UserError
from sparse_vlm.files import check_output, write_text
from sparse_vlm.weight_decay import decayed_weights
from train.checkpoints import all_checkpoints, last_checkpoint, remove_incomplete
from train.log import LOG_NAME, JsonlLog
from train.stage_arguments import StageArguments
from train.variant import require_same_variant, write_variant

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """Named parameters that train with one learning rate, or not at all (`learning_rate` None)."""

    name: str
    parameters: tuple[nn.Parameter, ...]
    learning_rate: float | None


def what_trains(model: nn.Module, parts: Sequence[Part]) -> str:
    """Sets `requires_grad` of every parameter from the parts and returns the table that says so.

    Raises:
        ValueError: the parts do not hold each parameter of the model exactly once.
    """
    named = [id(parameter) for part in parts for parameter in part.parameters]
    if len(named) != len(set(named)) or set(named) != {id(parameter) for parameter in model.parameters()}:
        raise ValueError("The parts must hold each parameter of the model exactly once.")
    lines = [f"{'part':<24} {'parameters':>14}  learning rate"]
    for part in parts:
        for parameter in part.parameters:
            parameter.requires_grad_(part.learning_rate is not None)
        count = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in part.parameters)  # ZeRO-3 shards
        rate = "frozen" if part.learning_rate is None else f"{part.learning_rate:g}"
        lines.append(f"{part.name:<24} {count:>14,}  {rate}")
    return "\n".join(lines)


def say_what_trains(model: nn.Module, parts: Sequence[Part], args: StageArguments) -> None:
    """`what_trains`; the main process logs the table and writes it to output_dir/what_trains.txt."""
    table = what_trains(model, parts)
    if args.process_index == 0:
        logger.warning("What trains:\n%s", table)
        write_text(Path(args.output_dir) / "what_trains.txt", table + "\n")


class StageTrainer(Trainer):
    """Trainer whose optimizer has one learning rate per part (weight decay: `decayed_weights`), which restores a
    checkpoint in full or not at all, and only one of the same `variant`.

    Args:
        parts: as given to `what_trains`.
        **trainer: transformers' Trainer arguments.
    """

    def __init__(self, parts: Sequence[Part], **trainer: Any) -> None:
        super().__init__(**trainer)
        self.parts = parts

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
        return super().train(resume_from_checkpoint, *args, **options)

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

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        # transformers' own compares the file's names with the model's although save_pretrained may have renamed them
        # (it does for Llava), and then goes on from the starting weights with no more than a warning.
        target = self.model if model is None else model
        if isinstance(target, PreTrainedModel):
            restored = type(target).from_pretrained(resume_from_checkpoint, dtype=target.dtype)
            target.load_state_dict(restored.state_dict())
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        if state_dict is not None:  # what DeepSpeed gathers has tied weights twice
            for tied, source in getattr(self.model, "all_tied_weights_keys", {}).items():
                if tied in state_dict and source in state_dict:
                    state_dict[tied] = state_dict[source]
        super()._save(output_dir, state_dict)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.args.should_save:
            write_variant(Path(output_dir), self.variant())
        # The state that marks a checkpoint as complete is written next, by one process: all others must be done.
        self.accelerator.wait_for_everyone()

    def _run_epoch(self, *args: Any, **options: Any) -> None:
        # transformers would train one step more when it goes on from the last step of a run.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **options)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        if load_result.missing_keys or load_result.unexpected_keys:
            raise RuntimeError(f"The checkpoint does not fit the model: {load_result}")


def prepare(args: StageArguments) -> None:
    """Fails early: an output directory that is finished or a file, a checkpoint to go on from, or another number of
    processes than asked for. Tells DeepSpeed of the processes, and seeds. To be called before a model is loaded.

    Raises:
        UserError: with the values.
    """
    if (Path(args.output_dir) / "config.json").exists():
        raise UserError(f"{args.output_dir} already holds a finished model. Choose another --output_dir or remove it.")
    check_output(str(args.output_dir))
    if args.resume_from_checkpoint is not None:
        raise UserError(
            f"--resume_from_checkpoint {args.resume_from_checkpoint} is not supported: a run goes on from the last "
            "complete checkpoint in its --output_dir by itself. Leave it out."
        )
    asked = args.num_processes or int(os.environ.get("WORLD_SIZE", "1"))
    if args.world_size != asked:
        raise UserError(
            f"{asked} processes were asked for but {args.world_size} trains. Launch with "
            f"`deepspeed --num_gpus {asked} ...` or torchrun (accelerate on a CPU may start one process only)."
        )
    if args.n_gpu > 1:
        raise UserError(
            f"One process sees {args.n_gpu} GPUs. Launch with `deepspeed` or torchrun, or set CUDA_VISIBLE_DEVICES."
        )
    if args.deepspeed:
        import deepspeed  # slow, and needs a compiler

        try:
            deepspeed.init_distributed()  # ZeRO-3 shards while it loads; on a CPU transformers leaves this out
        except ModuleNotFoundError as error:  # mpi4py, where nobody says which of how many processes this is
            raise UserError(
                "--deepspeed needs a launcher: start with `deepspeed --num_gpus N ...` or torchrun in place of python."
            ) from error
    set_seed(args.seed)


def refuse_zero3() -> None:
    """For stages whose process 0 alone saves the model; to be called after `prepare`.

    Raises:
        UserError: each process would hold a share of the weights only.
    """
    if is_deepspeed_zero3_enabled():
        raise UserError("This stage saves its model from one process: use train/zero2.json, not ZeRO-3.")


def run(trainer: Trainer) -> None:
    """Trains from the last complete checkpoint in output_dir, or from the start, writing output_dir/log.jsonl.

    Raises:
        UserError: one that the data set raised; there is no batch.
    """
    output_dir = Path(str(trainer.args.output_dir))
    output_dir.mkdir(parents=True, exist_ok=True)
    trainer.add_callback(JsonlLog(output_dir / LOG_NAME))
    checkpoint = last_checkpoint(output_dir)
    if trainer.is_world_process_zero():
        remove_incomplete(output_dir)
    if checkpoint is not None:
        logger.warning("Going on from %s", checkpoint)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if trainer.state.global_step == 0:  # transformers only warns
        raise UserError(
            "Training ended before its first step: the data hold no whole batch. Give more data, or make "
            "--per_device_train_batch_size smaller."
        )


def publish(source: Path, output_dir: Path, *, keep_checkpoints: bool) -> None:
    """Moves a finished model's files to output_dir, config.json last (it marks the model as complete), and removes
    `source` and, unless kept, the checkpoints. To be called by the main process alone."""
    (source / "training_args.bin").unlink(missing_ok=True)  # a pickle; the log and the command line say the same
    for path in sorted(source.iterdir(), key=lambda path: path.name == "config.json"):
        os.replace(path, output_dir / path.name)
    source.rmdir()
    if not keep_checkpoints:
        for path in all_checkpoints(output_dir):
            shutil.rmtree(path)
