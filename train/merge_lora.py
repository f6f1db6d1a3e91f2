"""Merge a LoRA adapter into the model that it was trained on, and write an ordinary model directory.

    python -m train.merge_lora --model_name_or_path ALIGNED --adapter OUT/checkpoint-500 --output_dir MERGED

`train.instruct` merges at its end; use this command for a checkpoint of a run. With QLoRA, too, the adapter is merged
into the full-precision model, as in LLaVA. Docs: docs/training.md.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sparse_vlm.dtypes import DTYPES
from sparse_vlm.errors import UserError, unknown_choice
from train.language.result import write_result
from train.stages.command_line import run_command


@dataclass
class MergeArguments:
    """The model, the adapter and the result."""

    model_name_or_path: str = field(metadata={"help": "model directory that the adapter was trained on"})
    adapter: str = field(
        metadata={"help": "checkpoint-N of `train.instruct --lora_enable True --keep_checkpoints True`"}
    )
    output_dir: str = field(metadata={"help": "directory for the merged model"})
    dtype: str | None = field(
        default=None,
        metadata={"help": f"dtype of the result: {' | '.join(DTYPES)} (default: that of --model_name_or_path)"},
    )


def merge_lora(args: MergeArguments) -> None:
    """Write the merged model directory.

    Raises:
        UserError: the adapter is missing, the dtype is unknown, or see `write_result`.
    """
    if args.dtype is not None and args.dtype not in DTYPES:
        raise unknown_choice("--dtype", args.dtype, DTYPES)
    if not Path(args.adapter).is_dir():
        raise UserError(
            f"There is no checkpoint {args.adapter}; train.instruct removes its checkpoints at the end unless "
            "--keep_checkpoints True."
        )
    if not (Path(args.adapter) / "adapter_config.json").is_file():
        raise UserError(f"{args.adapter} does not hold a LoRA adapter (adapter_config.json).")
    write_result(args.model_name_or_path, args.adapter, args.output_dir, args.dtype)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    return run_command("train.merge_lora", __doc__, (MergeArguments,), merge_lora, argv)


if __name__ == "__main__":
    sys.exit(main())
