"""The model that evaluations are tested on."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def vlm_dir(worded_vlm_dir: Path) -> Path:
    """A model directory whose answers differ."""
    return worded_vlm_dir
