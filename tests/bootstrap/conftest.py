"""The teacher that most tests bootstrap from."""

from pathlib import Path

import pytest

from sparse_vlm.bootstrap import Teacher, open_teacher


@pytest.fixture
def teacher(clip_dir: Path) -> Teacher:
    """A random CLIP of 6 blocks."""
    return open_teacher(str(clip_dir))
