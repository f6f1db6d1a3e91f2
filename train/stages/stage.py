"""What every training stage shares: its start, its end, the report of what trains.

Knows nothing of the model. A stage makes its model, data and parts, and calls `run`.
"""

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from transformers import Trainer, set_seed
from transformers.integrations import is_deepspeed_zero3_enabled

from sparse_vlm.errors import UserError
from sparse_vlm.files import check_output, write_text
from train.stages.arguments import StageArguments
from train.stages.checkpoints import all_checkpoints, last_checkpoint, remove_incomplete
from train.stages.log import LOG_NAME, JsonlLog

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


def prepare(args: StageArguments) -> None:
    """Fails early: an output directory that is finished or a file, a checkpoint to go on from, or another number of
    processes, or of samples in a step, than asked for. Tells DeepSpeed of the processes, and seeds. To be called before
    a model is loaded.

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
    _check_global_batch(args)
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


def _check_global_batch(args: StageArguments) -> None:
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    if args.global_batch_size not in (None, per_step):
        raise UserError(
            f"A step would have {args.per_device_train_batch_size} · {args.gradient_accumulation_steps} · "
            f"{args.world_size} = {per_step} samples (per device · accumulation · processes), but the learning rate is "
            f"for --global_batch_size {args.global_batch_size}. Change --gradient_accumulation_steps or "
            "--per_device_train_batch_size; or the rate, and the size with it."
        )


def refuse_zero3() -> None:
    """For stages whose process 0 alone saves the model; to be called after `prepare`.

    Raises:
        UserError: each process would hold a share of the weights only.
    """
    if is_deepspeed_zero3_enabled():
        raise UserError(
            "This stage saves its model from one process: use train/configs/deepspeed/zero2.json, not ZeRO-3."
        )


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


def publish(source: Path, output_dir: Path, opens: Callable[[Path], object], *, keep_checkpoints: bool) -> None:
    """Moves a finished model's files to output_dir, config.json last (it marks the model as complete), and removes
    `source` and, unless kept, the checkpoints. To be called by the main process alone.

    `opens` opens such a directory: what it refuses is not published, and the checkpoints stay.
    """
    opens(source)
    (source / "training_args.bin").unlink(missing_ok=True)  # a pickle; the log and the command line say the same
    for path in sorted(source.iterdir(), key=lambda path: path.name == "config.json"):
        os.replace(path, output_dir / path.name)
    source.rmdir()
    if not keep_checkpoints:
        for path in all_checkpoints(output_dir):
            shutil.rmtree(path)
