"""A tiny real LLM behind SmolLM2's tokenizer, and the model directory built from it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from sparse_vlm.encoder import SparseFormer, SparseFormerConfig
from sparse_vlm.vlm.build import build_vlm, load_vlm

# model and processor; not their classes, because transformers' annotations of generate fit none of its own models
Loaded = tuple[Any, Any]


@pytest.fixture(scope="session")
def encoder_dir(tmp_path_factory: pytest.TempPathFactory, tiny_config: SparseFormerConfig) -> Path:
    """A directory of `SparseFormer.save_pretrained`, 6 latent tokens + CLS."""
    torch.manual_seed(0)
    encoder = SparseFormer(tiny_config)
    for parameter in encoder.parameters():  # as after some training: nothing at its exact initial zero
        parameter.data += 0.02 * torch.randn_like(parameter)
    directory = tmp_path_factory.mktemp("encoder") / "encoder"
    encoder.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def llm_dir(tmp_path_factory: pytest.TempPathFactory, smollm2_tokenizer: PreTrainedTokenizerBase) -> Path:
    """A random two-layer Llama with tied embeddings and SmolLM2's tokenizer."""
    directory = tmp_path_factory.mktemp("llm")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(smollm2_tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    smollm2_tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def vlm_dir(tmp_path_factory: pytest.TempPathFactory, encoder_dir: Path, llm_dir: Path) -> Path:
    """What `build_vlm` makes of the two."""
    directory = tmp_path_factory.mktemp("vlm") / "vlm"
    build_vlm(encoder_dir, llm_dir, directory)
    return directory


@pytest.fixture(scope="session")
def vlm(vlm_dir: Path) -> Loaded:
    """The loaded model and its processor; tests leave them as they are."""
    return load_vlm(vlm_dir)


@pytest.fixture(scope="session")
def images() -> list[Image.Image]:
    """Three different pictures of different sizes."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((40, 30), (64, 64), (50, 90))
    return [
        Image.fromarray(torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8).numpy())
        for width, height in sizes
    ]
