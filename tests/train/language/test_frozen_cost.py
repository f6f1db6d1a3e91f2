"""The variants of an alignment start alike, and bf16 halves the frozen weights."""

import json
from pathlib import Path

import pytest

from train.language.frozen_cost import main


@pytest.mark.slow
def test_variants_side_by_side(vlm_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    words = ["--model", str(vlm_dir), "--data_path", str(data_dir / "captions.json"), "--image_folder", str(data_dir)]
    words += ["--steps", "2", "--batch_size", "2", "--output", str(tmp_path / "cost.json")]
    assert main(words) == 0
    full, converted, held = json.loads((tmp_path / "cost.json").read_text())["variants"]
    for variant in (full, converted, held):
        assert len(variant["losses"]) == len(variant["seconds"]) == 2
        assert variant["median_seconds"] == variant["seconds"][1]
        assert variant["losses"][0] == pytest.approx(full["losses"][0], rel=0.02)
    assert sum(held["bytes"].values()) < sum(converted["bytes"].values()) == sum(full["bytes"].values())


def test_one_step_is_not_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "m", "--data_path", "d", "--image_folder", "i", "--output", str(tmp_path / "cost.json")]
    assert main([*words, "--steps", "1"]) == 2
    assert "--steps must be at least 2" in capsys.readouterr().err
