"""Modules that stay float32 islands in a model of any dtype."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


class Float32Module(nn.Module):
    """Keeps its parameters in float32 under `.to(dtype)`, `.half()` and `.bfloat16()`; devices change as usual.

    RoIs and everything that makes them (offsets, adjustment, encoding) live in such modules. Their forward turns
    autocast off through `float32_region`.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Float32Module":
        def keep_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if tensor.is_floating_point() and moved.dtype != tensor.dtype:
                return tensor.to(moved.device)
            return moved

        return super()._apply(keep_float32, recurse)


def float32_region(tensor: Tensor) -> AbstractContextManager[object]:
    """Context in which autocast is off on the tensor's device."""
    if tensor.is_meta:  # no numbers, no autocast
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)
