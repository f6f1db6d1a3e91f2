"""The model that evaluations are tested on."""

from dataclasses import replace
from pathlib import Path

import pytest

from sparse_vlm.encoder import SparseFormerConfig
from sparse_vlm.encoder.variants import VARIANTS


@pytest.fixture(scope="session")
def vlm_dir(worded_vlm_dir: Path) -> Path:
    """A model directory whose answers differ."""
    return worded_vlm_dir


@pytest.fixture
def tiny_variant(monkeypatch: pytest.MonkeyPatch, tiny_config: SparseFormerConfig) -> str:
    """The name of a variant so small that measuring it costs nothing, and compiling it little."""
    focus, cortex = replace(tiny_config.focus, repeats=1), replace(tiny_config.cortex, depth=1)
    monkeypatch.setitem(VARIANTS, "tiny", replace(tiny_config, focus=focus, cortex=cortex))
    return "tiny"
