"""A tiny CLIP and a student beside it."""

import json
from pathlib import Path

import pytest
import torch
from open_clip.model import CLIP
from safetensors.torch import save_file


@pytest.fixture(scope="module")
def clip_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random CLIP in open_clip's own format, with embeddings as wide as the tiny encoder's."""
    directory = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1, "head_width": 32}
    text = {"context_length": 8, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}
    config = {"embed_dim": 12, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    save_file(CLIP(**config).state_dict(), directory / "open_clip_model.safetensors")
    (directory / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return directory
