"""Fixtures of the tests that `python -m eval.cost.gpu` runs on a GPU, and `make test` on the CPU, with tiny models.

They need torch, timm, transformers, safetensors and pillow. Tests that need more packages are skipped without them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.train.conftest import data_dir, images  # noqa: F401

TEXTS = ("what color is the image?", "is it red, green, blue, yellow, black or white?", "describe it. it is pink: no")

TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The device, with TF32 switched off."""
    import torch

    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "cuda":
            patch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
            patch.setattr(torch.backends.cudnn, "allow_tf32", False)
        yield torch.device(request.param)


@pytest.fixture(scope="session")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random ViT in timm's directory format."""
    import timm
    import torch

    directory = tmp_path_factory.mktemp("teacher")
    sizes = {"depth": 3, "embed_dim": 64, "num_heads": 2, "img_size": 32, "num_classes": 12}
    torch.manual_seed(0)
    vit = timm.create_model("vit_base_patch16_clip_224", **sizes)
    timm.models.save_for_hf(vit, directory, model_args=sizes, safe_serialization=True)
    return directory


@pytest.fixture(scope="session")
def words_dir(tmp_path_factory: pytest.TempPathFactory, encoder_dir: Path) -> Path:
    """A VLM whose answers differ between images. Its heads have 16 channels, which flash attention supports."""
    from tests.worded_vlm import build_worded_vlm

    return build_worded_vlm(encoder_dir, tmp_path_factory.mktemp("words"), TEXTS, TEMPLATE, width=64)
