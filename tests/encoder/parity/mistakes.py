"""Mistakes that a reader of the architecture could make; the comparison with the authors' numbers must catch each.

A mistake changes one thing in a faithful model. Each file test_SUBJECT.py of this folder lists the mistakes of one
subject, and the same changes without a mistake, which must keep parity.

Two kinds of mistake stay below the tolerances on these tiny models and are caught elsewhere: a wrong LayerNorm eps
(test_variants.py asserts every one) and, in the bootstrapped models, a misplaced eps of the points' spread
(tests/encoder/test_rois.py; v1's numbers catch it here). v1 adjusts its RoIs, with |size|, before it samples, so the
sign of the size in the sampling matters in the bootstrapped models only.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers import Attention
from torch import Tensor, nn

from sparse_vlm.encoder import SparseFormer
from tests.encoder.parity.official import load_official, relative_errors

Patch = pytest.MonkeyPatch
Mistake = Callable[[Patch, SparseFormer], None]
Rows = dict[str, tuple[tuple[str, ...], Mistake]]  # what is changed -> the official models that it is tried on, and how
BTSP, AUGREG, V1 = "btsp_clip_tiny", "btsp_augreg_tiny", "v1_tiny"
BOTH = (BTSP, V1)


def each_row(rows: Rows) -> Any:
    """Parametrize a test with `name`, an official model, and `change`."""
    cases = [
        pytest.param(name, change, id=f"{what} ({name.split('_')[-2 if name != V1 else 0]})")
        for what, (names, change) in rows.items()
        for name in names
    ]
    return pytest.mark.parametrize(("name", "change"), cases)


def greatest_error(name: str, change: Mistake, patch: Patch) -> float:
    """The greatest error of an official model with a change, in units of its tolerance: ≤ 1 is parity."""
    encoder = load_official(name)
    change(patch, encoder)
    return max(relative_errors(encoder, name, "a").values())


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
