"""The precision of a stage: bf16 is autocast over float32 weights, with DeepSpeed as without."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from sparse_vlm.devices import has_bfloat16
from sparse_vlm.dtypes import name_of
from sparse_vlm.errors import UserError
from train.stages.checkpoints import last_checkpoint
from train.stages.variant import stored_value

BF16, FP16 = "bf16", "fp16"  # as transformers and accelerate name them


def choose_bf16(args: TrainingArguments) -> bool:
    """Decide whether a stage whose command does not say so computes in bf16.

    A launcher's choice (`accelerate launch --mixed_precision`) and --fp16 come first. A run that resumes keeps its
    checkpoint's precision. Otherwise it is bf16 where `has_bfloat16`. The first process decides for all: on another
    processor, or by another measurement, they could differ.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if args.fp16 or launched != "no":
        return launched == BF16 and not args.fp16
    checkpoint = last_checkpoint(os.path.expanduser(str(args.output_dir)))
    earlier = None if checkpoint is None else stored_value(checkpoint, "dtype")
    chosen = has_bfloat16(args.device) if earlier is None else earlier == name_of(torch.bfloat16)
    if args.world_size == 1:
        return chosen
    agreed = torch.tensor(int(chosen), device=args.device)
    torch.distributed.broadcast(agreed, 0)
    return bool(agreed)


def with_autocast(deepspeed: str | dict[str, Any]) -> dict[str, Any]:
    """Return a DeepSpeed configuration whose bf16 is torch's autocast.

    DeepSpeed's own bf16 casts every weight, even those of the encoder's coordinates, which must stay float32.

    Args:
        deepspeed: the configuration, its JSON text, or a JSON file, as for transformers' --deepspeed.

    Raises:
        UserError: the file is missing or does not hold a JSON object.
    """
    config = deepspeed
    if isinstance(deepspeed, str):
        try:
            config = json.loads(deepspeed if deepspeed.startswith("{") else Path(deepspeed).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"--deepspeed {deepspeed} is not a readable JSON file: {error}.") from error
    if not isinstance(config, dict):
        raise UserError(f"--deepspeed {deepspeed} does not hold a JSON object.")
    return config | {"bf16": {"enabled": False}, "torch_autocast": {"enabled": True, "dtype": "bfloat16"}}


def compute_dtype(args: TrainingArguments) -> torch.dtype:
    """Return the dtype of a stage's matrix products. `args` have gone through `with_autocast`."""
    deepspeed: Any = args.deepspeed
    if args.mixed_precision == BF16 or (
        isinstance(deepspeed, dict) and deepspeed.get("torch_autocast", {}).get("enabled")
    ):
        return torch.bfloat16
    return torch.float16 if args.mixed_precision == FP16 else torch.float32
