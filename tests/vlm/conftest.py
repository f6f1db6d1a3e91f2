"""Fixtures: the tiny VLM and images for it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sparse_vlm.vlm.loading import load_vlm

# model and processor; Any, because transformers' annotations of generate do not fit its own models
Loaded = tuple[Any, Any]


@pytest.fixture(scope="session")
def vlm(vlm_dir: Path) -> Loaded:
    """The model and its processor. Tests must not change them."""
    return load_vlm(vlm_dir)


@pytest.fixture(scope="session")
def images() -> list[Image.Image]:
    """Three different images of different sizes."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((40, 30), (64, 64), (50, 90))
    return [
        Image.fromarray(torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8).numpy())
        for width, height in sizes
    ]


def logits_of(model: Any, inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def is_tied(model: Any) -> bool:
    return model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
