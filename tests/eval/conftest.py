"""Models to test evaluations with."""

from dataclasses import replace
from pathlib import Path

import pytest

from sparse_vlm.encoder import SparseFormerConfig
from sparse_vlm.encoder.variants import VARIANTS


@pytest.fixture(scope="session")
def vlm_dir(worded_vlm_dir: Path) -> Path:
    """A model directory whose answers depend on image and question."""
    return worded_vlm_dir


@pytest.fixture
def tiny_variant(monkeypatch: pytest.MonkeyPatch, tiny_config: SparseFormerConfig) -> str:
    """The name of a variant that is fast to measure and to compile."""
    focus, cortex = replace(tiny_config.focus, repeats=1), replace(tiny_config.cortex, depth=1)
    monkeypatch.setitem(VARIANTS, "tiny", replace(tiny_config, focus=focus, cortex=cortex))
    return "tiny"
