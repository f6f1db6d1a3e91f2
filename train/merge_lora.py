"""LoRA → an ordinary model directory: the adapter's weights added to those of the model that it was trained on.

    python -m train.merge_lora --model_name_or_path ALIGNED --adapter OUT/checkpoint-500 --output_dir MERGED

`train/instruct.py` does this at its end; here for a checkpoint of a run. With QLoRA too the model that is merged into
is the one of full precision, as in LLaVA. Docs: docs/training.md.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sparse_vlm.dtypes import DTYPES
from sparse_vlm.errors import UserError, exit_with_sentence, unknown_choice
from train.language.result import write_result
from train.stages.command_line import parse_arguments


@dataclass
class MergeArguments:
    """Two directories in, one out."""

    model_name_or_path: str = field(metadata={"help": "the model directory that the adapter was trained on"})
    adapter: str = field(metadata={"help": "checkpoint-N of train/instruct.py with --lora_enable"})
    output_dir: str = field(metadata={"help": "the new model directory"})
    dtype: str | None = field(
        default=None, metadata={"help": f"{' | '.join(DTYPES)}; default: that of model_name_or_path"}
    )


def merge_lora(args: MergeArguments) -> None:
    """Writes the merged model directory.

    Raises:
        UserError: no adapter, an unknown dtype, or see `write_result`.
    """
    if args.dtype is not None and args.dtype not in DTYPES:
        raise unknown_choice("--dtype", args.dtype, DTYPES)
    if not (Path(args.adapter) / "adapter_config.json").is_file():
        raise UserError(f"{args.adapter} holds no LoRA adapter (adapter_config.json).")
    write_result(args.model_name_or_path, args.adapter, args.output_dir, args.dtype)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    return exit_with_sentence(lambda: merge_lora(*parse_arguments((MergeArguments,), words)))


if __name__ == "__main__":
    sys.exit(main())
