"""QuickGELU in one kernel, where timm's takes three."""

from typing import Any

import torch
from timm.layers import QuickGELU
from torch import Tensor, nn
from torch.autograd import Function

SLOPE = 1.702
SATURATED = 60.0  # σ(60) rounds to 1 in every dtype, and exp(60) is still finite in float32


class FusedQuickGELU(QuickGELU):
    """x·σ(1.702·x), as timm's `QuickGELU`, which passes over the activations three times and stores three tensors.

    The derivative of softplus is σ, so torch's kernel for softplus' backward pass, grad·σ(β·x), computes it at once for
    grad = x. Its own derivative is that of SiLU at 1.702·x. Compilers fuse the formula themselves, and ONNX Runtime
    recognises it, so they get the formula.
    """

    def forward(self, input: Tensor) -> Tensor:
        """float[…] -> float[…], each value on its own."""
        if torch.compiler.is_compiling():
            return super().forward(input)
        return _QuickGELU.apply(input)


class _QuickGELU(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.ops.aten.softplus_backward(x, x, SLOPE, SATURATED)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        scaled = SLOPE * ctx.saved_tensors[0]
        if torch.is_grad_enabled():  # a second derivative is wanted, which torch's kernel lacks
            gate = scaled.sigmoid()
            return grad * gate * (1 + scaled * (1 - gate))
        return torch.ops.aten.silu_backward(grad, scaled)


def fuse_quick_gelu(model: nn.Module) -> None:
    """Replace every QuickGELU of timm inside `model` by a `FusedQuickGELU`, in place."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is QuickGELU:
                setattr(module, name, FusedQuickGELU())
