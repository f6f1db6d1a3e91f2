"""The precision of a stage: bf16 is autocast over float32 weights, with DeepSpeed as without."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from sparse_vlm.errors import UserError


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
    if args.bf16 or (isinstance(deepspeed, dict) and deepspeed.get("torch_autocast", {}).get("enabled")):
        return torch.bfloat16
    return torch.float16 if args.fp16 else torch.float32
