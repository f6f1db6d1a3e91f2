"""Modules that keep float32 parameters in a model of any dtype."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Float32Module(nn.Module):
    """A module whose parameters stay float32.

    They do so under `.to(dtype)`, `.half()` and `.bfloat16()`, and when they are replaced. Devices change as usual.
    RoIs and everything that computes them (offsets, adjustment, encoding) are such modules. Their forward pass disables
    autocast with `float32_region`.
    """

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Convert `param` to float32. `module.name = parameter` calls this too, and vLLM replaces every parameter."""
        if param is not None and param.is_floating_point() and param.dtype != torch.float32:
            param = nn.Parameter(param.detach().float(), requires_grad=param.requires_grad)
        super().register_parameter(name, param)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Float32Module":
        def keep_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if tensor.is_floating_point() and moved.dtype != tensor.dtype:
                return tensor.to(moved.device)
            return moved

        return super()._apply(keep_float32, recurse)


class Float32Linear(Float32Module):
    """x·Wᵀ + b in float32, with the arguments, parameters and initialisation of `nn.Linear`, but not its type.

    Libraries search a model for `nn.Linear` to quantise, cast, replace or adapt it, or to communicate it in bf16
    (bitsandbytes, open_clip, vLLM, peft, DeepSpeed). They must not find the layers that compute coordinates.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=torch.float32))
        self.bias = nn.Parameter(torch.empty(out_features, dtype=torch.float32)) if bias else None
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(in_features)
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, inputs: Tensor) -> Tensor:
        """float32[…, in] -> float32[…, out]"""
        # .float() only matters if a parameter's `data` was cast: its values are rounded then, but computed in float32
        return F.linear(inputs, self.weight.float(), None if self.bias is None else self.bias.float())

    def extra_repr(self) -> str:
        """Same text as `nn.Linear`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Float32LayerNorm(Float32Module, nn.LayerNorm):
    """`nn.LayerNorm` over the last dimension, in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps=eps, dtype=torch.float32)

    def forward(self, inputs: Tensor) -> Tensor:
        """float32[…, width] -> float32[…, width]"""
        return F.layer_norm(inputs, self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)


LINEAR = (nn.Linear, Float32Linear)  # for `isinstance` checks that mean every linear layer


def float32_region(tensor: Tensor) -> AbstractContextManager[object]:
    """Context that disables autocast on the device of `tensor`."""
    if tensor.is_meta:  # autocast does not support the meta device
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)
