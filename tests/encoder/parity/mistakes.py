"""Types and helpers for mistakes in the architecture. Each file SUBJECT_mistakes.py lists those of one subject.

A mistake changes one thing in a faithful model. FAITHFUL lists the same changes without a mistake, which keep parity.
"""

from collections.abc import Callable

import pytest
import torch
from timm.layers import Attention
from torch import Tensor, nn

from sparse_vlm.encoder import SparseFormer

Patch = pytest.MonkeyPatch
Mistake = Callable[[Patch, SparseFormer], None]
Rows = dict[str, tuple[tuple[str, ...], Mistake]]  # what is changed -> the official models that it is tried on, and how
BTSP, AUGREG, V1 = "btsp_clip_tiny", "btsp_augreg_tiny", "v1_tiny"
BOTH = (BTSP, V1)


def replace(owner: object, name: str, value: object) -> Mistake:
    """The mistake of having `value` instead of the function or method `owner.name`."""
    return lambda patch, encoder: patch.setattr(owner, name, value)


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def eps_is(eps: float, part: str) -> Mistake:
    def mistake(patch: Patch, encoder: SparseFormer) -> None:
        for module in encoder.get_submodule(part).modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = eps

    return mistake


def heads_are(count: int, part: str) -> Mistake:
    def mistake(patch: Patch, encoder: SparseFormer) -> None:
        for module in encoder.get_submodule(part).modules():
            if isinstance(module, Attention):
                module.head_dim = module.num_heads * module.head_dim // count
                module.num_heads = count
                module.scale = module.head_dim**-0.5

    return mistake


def activation_is(activation: nn.Module, part: str) -> Mistake:
    def mistake(patch: Patch, encoder: SparseFormer) -> None:
        for module in encoder.get_submodule(part).modules():
            if hasattr(module, "fc1"):
                module.act = activation

    return mistake
