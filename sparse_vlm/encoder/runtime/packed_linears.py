"""Linears whose weights lie in the order in which the CPU reads them.

A matrix product first rearranges the weight into blocks that fit the processor's registers. With few tokens this takes
as long as a quarter of the whole product, and it is the same at every call: here it happens once, and the bias is added
within the product. Source: oneDNN, "Understanding Memory Formats", and torch's operations for it.
"""

from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor, nn

from sparse_vlm.encoder.float32 import LINEAR
from sparse_vlm.errors import UserError, lost_by_optimisation


class PackedLinear(nn.Module):
    """x·Wᵀ + b with a packed weight, for inference on a CPU. Inputs are cast to the dtype of the weight.

    Its state dict contains the ordinary weight. It cannot be trained, moved, cast or copied.

    Args:
        linear: a Linear in float32 or bfloat16 on the CPU; its weight is copied.
    """

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        weight = linear.get_parameter("weight").detach()
        self.out_features, self.in_features = weight.shape
        self.dtype = weight.dtype
        # Neither parameter nor buffer: its layout is opaque.
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        bias = linear._parameters.get("bias")
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach(), requires_grad=False))

    @property
    def weight(self) -> Tensor:
        """A copy of the ordinary weight, [out, in]."""
        return self.packed.to_dense()

    def forward(self, inputs: Tensor) -> Tensor:
        """float[…, in] -> float[…, out]"""
        if inputs.requires_grad and torch.is_grad_enabled():
            raise lost_by_optimisation("trained")
        return torch.ops.mkldnn._linear_pointwise(inputs.to(self.dtype), self.packed, self.bias, "none", [], "")

    def extra_repr(self) -> str:
        """Same text as `nn.Linear`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.weight
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedLinear":
        here = torch.empty(0, dtype=self.dtype)
        there = fn(here)
        if (there.dtype, there.device) != (here.dtype, here.device):
            raise lost_by_optimisation("moved or cast")
        return super()._apply(fn, recurse)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise lost_by_optimisation("copied")


def pack_linears(model: nn.Module) -> None:
    """Replace every Linear by a `PackedLinear`, in place, one after the other. Outputs change by rounding at most.

    Args:
        model: on the CPU, in float32 or bfloat16.

    Raises:
        UserError: the weights have another dtype, or torch has no packed product for them on this processor.
    """
    found = [
        (module, name, child)
        for module in model.modules()
        for name, child in module.named_children()
        if type(child) in LINEAR
    ]
    for dtype in {child.get_parameter("weight").dtype for _, _, child in found}:
        _require_packed_products(dtype)
    for module, name, child in found:
        setattr(module, name, PackedLinear(child))


def _require_packed_products(dtype: torch.dtype) -> None:
    if dtype not in (torch.float32, torch.bfloat16):
        raise UserError(f"Weights are packed in float32 or bfloat16, not in {dtype}: call model.float() first.")
    if not torch.backends.mkldnn.is_available():
        raise UserError("Packed weights need oneDNN, and this torch was built without it: use torch.compile.")
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise UserError("oneDNN does not multiply bfloat16 on this processor: call model.float() first.")
