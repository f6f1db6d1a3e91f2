"""Floating-point dtypes that can be chosen by name."""

import torch
from torch import nn

from sparse_vlm.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a dtype in `DTYPES`."""
    return str(dtype).removeprefix("torch.")


def convert(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert a model in place, except for each `Float32Module`, which stays float32.

    Raises:
        UserError: a weight is too large for `dtype`, as some are for float16.
    """
    limit = torch.finfo(dtype).max
    for name, parameter in model.named_parameters():
        largest = parameter.detach().abs().max().item() if parameter.numel() else 0.0
        if limit < largest < float("inf"):
            raise UserError(f"{name} holds {largest:.3g}, too large for {name_of(dtype)}: choose bfloat16.")
    model.to(dtype)
