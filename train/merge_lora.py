"""LoRA → an ordinary model directory: the adapter's weights added to those of the model that it was trained on.

    python -m train.merge_lora --model_name_or_path ALIGNED --adapter OUT/checkpoint-500 --output_dir MERGED

`train/instruct.py` does this at its end; here for a checkpoint of a run. With QLoRA too the model that is merged into
is the one of full precision, as in LLaVA. Docs: docs/training.md.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from peft import PeftModel
from safetensors import SafetensorError

from sparse_vlm.dtypes import DTYPES
from sparse_vlm.errors import UserError, exit_with_sentence, one_line, unknown_choice
from sparse_vlm.files import check_output, new_directory
from sparse_vlm.vlm.build import check_opens, load_vlm
from train.arguments import parse_arguments


@dataclass
class MergeArguments:
    """Two directories in, one out."""

    model_name_or_path: str = field(metadata={"help": "the model directory that the adapter was trained on"})
    adapter: str = field(metadata={"help": "checkpoint-N of train/instruct.py with --lora_enable"})
    output_dir: str = field(metadata={"help": "the new model directory"})
    dtype: str = field(default="float32", metadata={"help": " | ".join(DTYPES)})


def merge_lora(
    model_dir: str | Path,
    adapter: str | Path,
    output_dir: str | Path,
    dtype: str = "float32",
    provenance: dict[str, Any] | None = None,
) -> None:
    """Writes the model directory, atomically. The sum is made in float32.

    Args:
        model_dir: the model that the adapter was trained on.
        adapter: what peft saved.
        output_dir: of the result; see `new_directory`.
        dtype: of the result, a key of DTYPES.
        provenance: what the result's card says; None: what that of `model_dir` says.

    Raises:
        UserError: a directory is missing, the adapter does not fit, or the output would replace an input.
    """
    if dtype not in DTYPES:
        raise unknown_choice("--dtype", dtype, DTYPES)
    if not (Path(adapter) / "adapter_config.json").is_file():
        raise UserError(f"{adapter} holds no LoRA adapter (adapter_config.json).")
    check_output(output_dir, model_dir, adapter)
    model, processor = load_vlm(model_dir, dtype=torch.float32)
    try:
        merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(f"The adapter {adapter} does not fit {model_dir}: {one_line(error)}") from error
    if provenance is not None:
        merged.config.provenance = provenance
    with new_directory(output_dir) as temporary:
        merged.to(DTYPES[dtype]).save_pretrained(temporary)
        processor.save_pretrained(temporary)
        check_opens(temporary)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""

    def run() -> None:
        (args,) = parse_arguments((MergeArguments,), sys.argv[1:] if argv is None else argv)
        merge_lora(args.model_name_or_path, args.adapter, args.output_dir, args.dtype)

    return exit_with_sentence(run)


if __name__ == "__main__":
    sys.exit(main())
