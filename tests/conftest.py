"""Fixtures that several test modules share."""

import pytest
import torch

from sparse_vlm.encoder import CortexConfig, FocusConfig, Preprocessing, SparseFormer, SparseFormerConfig, StemConfig


@pytest.fixture
def tiny_config() -> SparseFormerConfig:
    """Bootstrapped, 6 latent tokens + CLS, two CLIP blocks of width 128, 64-pixel crops."""
    return SparseFormerConfig(
        StemConfig(8),
        FocusConfig("bootstrapped", tokens=6, width=64, heads=1, repeats=2),
        CortexConfig("vit_base_patch16_clip_quickgelu_224", depth=2, width=128, heads=2, head_dim=12, head_bias=False),
        Preprocessing(resize=64, crop=64),
    )


@pytest.fixture
def tiny_encoder(tiny_config: SparseFormerConfig) -> SparseFormer:
    """A SparseFormer of `tiny_config` with seeded weights."""
    torch.manual_seed(0)
    return SparseFormer(tiny_config).eval()
