"""Descriptions of the project state the same numbers as its models."""

import re
import tomllib

from sparse_vlm.encoder.variants import VARIANTS
from tests.imports import ROOT


def test_token_counts() -> None:
    """From the fewest tokens of the quickstart's encoder to the largest released variant."""
    quickstart = re.findall(r'COUNTS = "(\d+)-\d+"', (ROOT / "train/quickstart/steps.py").read_text(encoding="utf-8"))
    tokens = [*map(int, quickstart), *(config.focus.tokens for config in VARIANTS.values())]
    assert quickstart
    counts = f"{min(tokens)} to {max(tokens)}"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"{counts} visual tokens" in project["description"]
    for page in ("README.md", "docs/index.md"):
        assert counts in (ROOT / page).read_text(encoding="utf-8").replace("\n", " ")
