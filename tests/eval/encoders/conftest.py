"""A tiny CLIP, a student beside it, and images of three classes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.model import CLIP
from PIL import Image
from safetensors.torch import save_file

from sparse_vlm.bootstrap import bootstrap_from, open_teacher


def save_clip(directory: Path, layers: int) -> Path:
    """Save a tiny random CLIP in open_clip's own format, with embeddings as wide as the tiny encoder's."""
    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 16, "width": 64, "layers": layers, "head_width": 32}
    text = {"context_length": 8, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}
    config = {"embed_dim": 12, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    save_file(CLIP(**config).state_dict(), directory / "open_clip_model.safetensors")
    (directory / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return directory


@pytest.fixture(scope="module")
def clip_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP with one block."""
    return save_clip(tmp_path_factory.mktemp("clip"), layers=1)


@pytest.fixture(scope="module")
def deep_clip_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP with two blocks."""
    return save_clip(tmp_path_factory.mktemp("deep_clip"), layers=2)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Noise over one of three colours: 4 training and 3 test images of each."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 3)):
        for name, colour in (("blue", (0, 0, 255)), ("green", (0, 255, 0)), ("red", (255, 0, 0))):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = 0.5 * np.array(colour) + generator.integers(0, 128, (40, 40, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / split / name / f"{index}.png")
    return tmp_path


@pytest.fixture
def student_dir(clip_dir: Path, tmp_path: Path) -> Path:
    student, _ = bootstrap_from(open_teacher(str(clip_dir)), tokens=5, stem_channels=8)
    student.save_pretrained(tmp_path / "student")
    return tmp_path / "student"
