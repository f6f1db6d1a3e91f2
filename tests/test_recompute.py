"""Activation checkpointing: every block is recomputed, and other settings are refused."""

from typing import Any

import pytest

from sparse_vlm.encoder import SparseFormer
from sparse_vlm.errors import UserError
from sparse_vlm.recompute import recompute_blocks


@pytest.mark.parametrize("options", [None, {}, {"use_reentrant": False}])
def test_blocks_are_recomputed(options: dict[str, Any] | None, tiny_encoder: SparseFormer) -> None:
    recompute_blocks(tiny_encoder.cortex, options, every_n_layers=1, offload=False)
    assert tiny_encoder.cortex.trunk.grad_checkpointing


@pytest.mark.parametrize(
    "settings",
    [
        {"options": {"use_reentrant": True}},
        {"options": {"preserve_rng_state": False}},
        {"every_n_layers": 2},
        {"offload": True},
    ],
)
def test_other_settings_are_a_one_line_error(settings: dict[str, Any], tiny_encoder: SparseFormer) -> None:
    with pytest.raises(UserError, match=r"--activation_checkpointing_kwargs is .* Leave it out"):
        recompute_blocks(tiny_encoder.cortex, **{"options": None, "every_n_layers": 1, "offload": False} | settings)
    assert not tiny_encoder.cortex.trunk.grad_checkpointing
