"""A tiny open_clip model on disk, as `train/quickstart/teacher.py` writes it."""

import json
from pathlib import Path

import pytest
import torch
from open_clip.model import CLIP
from safetensors.torch import save_file

CLIP_CONFIG = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"layers": 6, "width": 128, "head_width": 64, "patch_size": 8, "image_size": 32},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}


@pytest.fixture(scope="session")
def clip_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP with a QuickGELU ViT of 6 blocks."""
    directory = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    save_file(CLIP(**CLIP_CONFIG).state_dict(), directory / "open_clip_model.safetensors")
    preprocess = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "interpolation": "bicubic"}
    config = {"model_cfg": CLIP_CONFIG, "preprocess_cfg": preprocess}
    (directory / "open_clip_config.json").write_text(json.dumps(config))
    return directory
