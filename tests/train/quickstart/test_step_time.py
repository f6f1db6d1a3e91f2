import json
from pathlib import Path

import pytest

from train.quickstart.step_time import main


def arguments(models: list[Path], data_dir: Path, output: Path, batches: int) -> list[str]:
    named = ["--models", *map(str, models), "--data_path", str(data_dir / "chats.json"), "--repeats", "2"]
    return [*named, "--image_folder", str(data_dir), "--batches", str(batches), "--output", str(output)]


@pytest.mark.slow
def test_times_the_models_in_turn(vlm_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    assert main(arguments([vlm_dir, vlm_dir], data_dir, tmp_path / "out.json", 1)) == 0
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [result["model"] for result in results] == [str(vlm_dir)] * 2
    for result in results:
        assert len(result["seconds"]) == 2
        assert min(result["seconds"]) > 0
        assert result["median_seconds"] == pytest.approx(sum(result["seconds"]) / 2)


def test_too_few_samples(vlm_dir: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments([vlm_dir], data_dir, tmp_path / "out.json", 2)) == 2
    assert "has 8 samples" in capsys.readouterr().err
