"""The start, the end and the parameter groups of a training stage.

Knows nothing of the model. A stage makes its model, data and parameter groups, and calls `run`.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from transformers import Trainer, set_seed
from transformers.integrations import is_deepspeed_zero3_enabled

from sparse_vlm.dtypes import name_of
from sparse_vlm.errors import UserError
from sparse_vlm.files import check_output, new_directory, write_text
from train.stages.arguments import StageArguments
from train.stages.checkpoints import all_checkpoints, last_checkpoint, remove_incomplete
from train.stages.cpu import keep_freed_memory
from train.stages.log import LOG_NAME
from train.stages.log_callback import JsonlLog
from train.stages.precision import compute_dtype

logger = logging.getLogger(__name__)
GROUPS_FILE = "parameter_groups.txt"


@dataclass(frozen=True)
class ParameterGroup:
    """Named parameters that train at one learning rate, or are frozen (`learning_rate` None)."""

    name: str
    parameters: tuple[nn.Parameter, ...]
    learning_rate: float | None


def set_trainable(model: nn.Module, groups: Sequence[ParameterGroup]) -> str:
    """Set `requires_grad` of every parameter and return a table of the groups.

    Raises:
        ValueError: the groups do not hold each parameter of the model exactly once.
    """
    named = [id(parameter) for group in groups for parameter in group.parameters]
    if len(named) != len(set(named)) or set(named) != {id(parameter) for parameter in model.parameters()}:
        raise ValueError("The groups must hold each parameter of the model exactly once.")
    lines = [f"{'group':<24} {'parameters':>14}  learning rate"]
    for group in groups:
        for parameter in group.parameters:
            parameter.requires_grad_(group.learning_rate is not None)
        count = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in group.parameters)  # ZeRO-3 shard
        rate = "frozen" if group.learning_rate is None else f"{group.learning_rate:g}"
        lines.append(f"{group.name:<24} {count:>14,}  {rate}")
    return "\n".join(lines)


def log_trainable(model: nn.Module, groups: Sequence[ParameterGroup], args: StageArguments) -> None:
    """Call `set_trainable`; the main process logs the table and writes it to output_dir/parameter_groups.txt."""
    table = set_trainable(model, groups)
    if args.process_index == 0:
        logger.info("Parameter groups:\n%s", table)
        write_text(Path(args.output_dir) / GROUPS_FILE, table + "\n")


def prepare(args: StageArguments) -> None:
    """Check the output directory, processes and batch, start DeepSpeed's communication, seed, and log the precision. On
    a CPU, keep freed memory.

    Call this before a model is loaded.

    Raises:
        UserError: the output directory holds a finished model or is a file, or the number of processes or of samples
            per step is not the one that was asked for.
    """
    if (Path(args.output_dir) / "config.json").exists():
        raise UserError(f"{args.output_dir} already holds a finished model. Choose another --output_dir or remove it.")
    check_output(str(args.output_dir))
    if args.resume_from_checkpoint is not None:
        raise UserError(
            f"--resume_from_checkpoint {args.resume_from_checkpoint} is not supported: a run resumes from the last "
            "complete checkpoint in its --output_dir by itself. Leave it out."
        )
    expected = args.num_processes or int(os.environ.get("WORLD_SIZE", "1"))
    if args.world_size != expected:
        raise UserError(
            f"Expected {expected} processes, but {args.world_size} are running. Launch with "
            f"`deepspeed --num_gpus {expected} ...` or torchrun (on a CPU, accelerate may start only one process)."
        )
    _check_global_batch(args)
    if args.n_gpu > 1:
        raise UserError(
            f"One process sees {args.n_gpu} GPUs. Launch with `deepspeed` or torchrun, or set CUDA_VISIBLE_DEVICES."
        )
    if args.deepspeed:
        import deepspeed  # slow, and needs a compiler

        try:
            deepspeed.init_distributed()  # ZeRO-3 shards while it loads; transformers leaves this out on a CPU
        except ModuleNotFoundError as error:  # mpi4py, which DeepSpeed tries where no launcher set the rank
            raise UserError(
                "--deepspeed needs a launcher: start with `deepspeed --num_gpus N ...` or torchrun instead of python."
            ) from error
    if args.device.type == "cpu":
        keep_freed_memory()
    set_seed(args.seed)
    if args.process_index == 0:
        logger.info("Training in %s on %s.", name_of(compute_dtype(args)), args.device)


def _check_global_batch(args: StageArguments) -> None:
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    if args.global_batch_size not in (None, per_step):
        raise UserError(
            f"A step would have {args.per_device_train_batch_size} · {args.gradient_accumulation_steps} · "
            f"{args.world_size} = {per_step} samples (per device · accumulation · processes), but the learning rate is "
            f"meant for --global_batch_size {args.global_batch_size}. Change --gradient_accumulation_steps or "
            "--per_device_train_batch_size, or change the rate and --global_batch_size together."
        )


def refuse_zero3() -> None:
    """For stages whose main process alone saves the model. Call this after `prepare`.

    Raises:
        UserError: under ZeRO-3, where a process holds only a shard of the weights.
    """
    if is_deepspeed_zero3_enabled():
        raise UserError(
            "This stage saves its model from one process: use train/configs/deepspeed/zero2.json, not ZeRO-3."
        )


def run(trainer: Trainer) -> None:
    """Train from the last complete checkpoint in output_dir, or from the start, and write output_dir/log.jsonl.

    Raises:
        UserError: the data set raised it, or holds no batch.
    """
    output_dir = Path(str(trainer.args.output_dir))
    output_dir.mkdir(parents=True, exist_ok=True)
    trainer.add_callback(JsonlLog(output_dir / LOG_NAME))
    checkpoint = last_checkpoint(output_dir)
    if trainer.is_world_process_zero():
        remove_incomplete(output_dir)
    if checkpoint is not None:
        logger.info("Resuming from %s", checkpoint)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if trainer.state.global_step == 0:  # transformers only warns
        raise UserError(
            "Training ended before its first step: the data do not fill one batch. Give more data, or reduce "
            "--per_device_train_batch_size."
        )


@contextmanager
def finished_model(args: StageArguments, opens: Callable[[Path], object]) -> Iterator[Path]:
    """Yield a directory for the files of the finished model and publish it, see `publish`.

    Args:
        args: output_dir and keep_checkpoints.
        opens: opens a model directory. If it raises, nothing is published and the checkpoints stay.
    """
    finished = Path(args.output_dir) / ".finished"
    with new_directory(finished) as directory:
        yield directory
    opens(finished)
    publish(finished, args)


def publish(source: Path, args: StageArguments) -> None:
    """Move a finished model's files to output_dir, then remove `source` and, unless they are kept, the checkpoints.

    config.json moves last: it marks the model as complete. Call this in the main process only.

    Args:
        source: the finished model, which is known to open.
        args: output_dir and keep_checkpoints.
    """
    output_dir = Path(args.output_dir)
    (source / "training_args.bin").unlink(missing_ok=True)  # a pickle; the log and the command line hold the same
    for path in sorted(source.iterdir(), key=lambda path: path.name == "config.json"):
        os.replace(path, output_dir / path.name)
    source.rmdir()
    if not args.keep_checkpoints:
        for path in all_checkpoints(output_dir):
            shutil.rmtree(path)
