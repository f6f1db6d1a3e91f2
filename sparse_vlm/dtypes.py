"""The floating-point types that people choose by name."""

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def name_of(dtype: torch.dtype) -> str:
    """The name by which people choose it."""
    return str(dtype).removeprefix("torch.")
