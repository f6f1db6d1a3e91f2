"""What every training stage shares: resume, parameter groups, the report of what trains.

Knows nothing of the model. A stage makes its model, data and parts, and calls `run`.
"""

import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.pytorch_utils import Conv1D
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from sparse_vlm.errors import UserError
from train.log import LOG_NAME, JsonlLog
from train.precision import with_autocast
from train.variant import require_same_variant, write_variant

logger = logging.getLogger(__name__)


@dataclass
class StageArguments(TrainingArguments):
    """transformers' TrainingArguments with this project's defaults. --bf16 is autocast, with DeepSpeed as without."""

    output_dir: str = field(kw_only=True, metadata={"help": "the stage's result, its log, its checkpoints"})
    optim: str = field(default="adamw_torch", metadata={"help": "any of transformers' optimizers"})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "as in LLaVA"})
    logging_steps: float = field(default=1, metadata={"help": f"how often a line goes to {LOG_NAME}"})
    save_total_limit: int | None = field(default=1, metadata={"help": "checkpoints kept while running"})
    remove_unused_columns: bool = field(default=False, metadata={"help": "our collators use every field"})
    report_to: str = field(default="none", metadata={"help": "e.g. tensorboard"})
    keep_checkpoints: bool = field(default=False, metadata={"help": "keep checkpoint-N after the stage's end"})
    num_processes: int | None = field(
        default=None, metadata={"help": "stop unless exactly so many processes train (some launchers start fewer)"}
    )
    warmup_ratio: float | None = field(default=None, metadata={"help": "LLaVA's name for a warmup_steps below 1"})

    def __post_init__(self) -> None:
        if self.bf16 and self.deepspeed:
            self.bf16, self.deepspeed = False, with_autocast(self.deepspeed)
        try:
            super().__post_init__()
        except ValueError as error:  # transformers' checks of values that do not go together
            raise UserError(str(error)) from error
        if self.warmup_ratio is not None:
            self.warmup_steps = self.warmup_ratio


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


def decayed_weights(model: nn.Module) -> set[int]:
    """The ids of the parameters that weight decay acts on: the weight matrices of linear layers and convolutions that
    no embedding shares. So never norms, biases, RoIs, embeddings, CLS tokens or layer scales, whatever their names."""
    linear = (nn.Linear, Conv1D, nn.modules.conv._ConvNd)
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, linear)}
    return matrices - {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}


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

    def variant(self) -> dict[str, Any] | None:
        """What a checkpoint and a run that goes on from it must have in common, as JSON values; None: not compared."""
        return None

    def restore(self, checkpoint: Path) -> None:
        """What a checkpoint has beside transformers' files: compares its variant with this run's.

        Raises:
            UserError: they differ, or the checkpoint holds none.
        """
        variant = self.variant()
        if variant is not None:
            require_same_variant(checkpoint, variant)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **options: Any) -> Any:
        if isinstance(resume_from_checkpoint, str):
            self.restore(Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint, *args, **options)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            opt_model: Any = self.model if model is None else model
            decayed = decayed_weights(opt_model)
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

    def _get_dataloader(self, *args: Any, **options: Any) -> DataLoader:
        # transformers applies --dataloader_drop_last to held-out images too; they are all measured.
        asked = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = asked and options.get("is_training", False)
        try:
            return super()._get_dataloader(*args, **options)
        finally:
            self.args.dataloader_drop_last = asked

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
        variant = self.variant()
        if variant is not None and self.args.should_save and output_dir is not None:
            write_variant(Path(output_dir), variant)

    def _save_rng_state(self, output_dir: str) -> None:
        # The state that marks a checkpoint as complete is written next, by one process: all others must be done.
        super()._save_rng_state(output_dir)
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


def last_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest complete `checkpoint-N` (the trainer's state is written last), or None."""
    found = [(_step_of(path), path) for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")]
    complete = [(step, path) for step, path in found if step is not None]
    return max(complete)[1] if complete else None


def _step_of(checkpoint: Path) -> int | None:
    """The step of a complete checkpoint; None if it was cut short."""
    try:
        return json.loads((checkpoint / TRAINER_STATE_NAME).read_text())["global_step"]
    except (OSError, ValueError):
        return None


def remove_incomplete(output_dir: str | Path) -> None:
    """Removes each `checkpoint-N` that a crash cut short: the trainer would count it as one of those to keep."""
    for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if _step_of(path) is None:
            logger.warning("Removing the incomplete checkpoint %s", path)
            shutil.rmtree(path)


def prepare(args: StageArguments) -> None:
    """Fails early: a finished output directory, or another number of processes than asked for. Tells DeepSpeed of the
    processes, and seeds. To be called before a model is loaded.

    Raises:
        UserError: with the values.
    """
    if (Path(args.output_dir) / "config.json").exists():
        raise UserError(f"{args.output_dir} already holds a finished model. Choose another --output_dir or remove it.")
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

        deepspeed.init_distributed()  # ZeRO-3 shards while it loads; on a CPU transformers leaves this out
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
        UserError: one that the data set raised, also in a data loader's worker process.
    """
    output_dir = Path(str(trainer.args.output_dir))
    output_dir.mkdir(parents=True, exist_ok=True)
    trainer.add_callback(JsonlLog(output_dir / LOG_NAME))
    checkpoint = last_checkpoint(output_dir)
    if trainer.is_world_process_zero():
        remove_incomplete(output_dir)
    if checkpoint is not None:
        logger.warning("Going on from %s", checkpoint)
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except UserError as error:  # torch wraps a worker's error: its whole traceback is the message
        raise UserError(str(error).rpartition(f"{UserError.__name__}: ")[2].strip()) from error


def publish(source: Path, output_dir: Path, *, keep_checkpoints: bool) -> None:
    """Moves a finished model's files to output_dir, config.json last (it marks the model as complete), and removes
    `source` and, unless kept, the checkpoints. To be called by the main process alone."""
    (source / "training_args.bin").unlink(missing_ok=True)  # a pickle; the log and the command line say the same
    for path in sorted(source.iterdir(), key=lambda path: path.name == "config.json"):
        os.replace(path, output_dir / path.name)
    source.rmdir()
    if not keep_checkpoints:
        for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
            shutil.rmtree(path)
