"""A folder of conversations and images."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.data.conversations.records import NONE, ONE, TWO


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a red 0.png, a green 1.png, and all.json, a LLaVA file of three samples."""
    for index, colour in enumerate(("red", "green")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{index}.png")
    (tmp_path / "all.json").write_text(json.dumps([ONE, TWO, NONE]))
    return tmp_path
