"""The teacher of most tests, and a small model that is registered in open_clip."""

import json
from pathlib import Path

import open_clip
import pytest

from sparse_vlm.bootstrap import Teacher, open_teacher
from tests.bootstrap.teachers.families import OPEN_CLIP, TEXT


@pytest.fixture
def teacher(clip_dir: Path) -> Teacher:
    """A random CLIP with 6 blocks."""
    return open_teacher(str(clip_dir))


@pytest.fixture(scope="session")
def tiny_name(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Name of a tiny CLIP with GELU that is registered in open_clip, without weights."""
    file = tmp_path_factory.mktemp("configs") / "sparse-vlm-test-clip.json"
    file.write_text(json.dumps({"embed_dim": 24, "text_cfg": TEXT} | OPEN_CLIP["laion and datacomp clip"]))
    open_clip.add_model_config(file)
    return file.stem
