"""The cost of a stream, measured on a tiny model."""

import json
from pathlib import Path

import pytest

from eval.video.streaming import main


def test_the_command(vlm_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "streaming.json"
    options = ["--minutes", "2", "1", "--fps", "0.2", "--frame_tokens", "3", "--max_frames", "8", "--dtype", "float32"]
    assert main(["--model", str(vlm_dir), *options, "--device", "cpu", "--output", str(output)]) == 0
    first, second = json.loads(output.read_text())["results"]
    assert (first["minutes"], second["minutes"]) == (1, 2)
    assert (first["frames"], second["frames"]) == (8, 8)
    assert first["cache_bytes"] == second["cache_bytes"] > 0
    assert 0 < second["frame"][0] <= second["slowest_frame"][0]
    assert "first token s" in output.with_suffix(".md").read_text()
    assert main(["--model", str(vlm_dir), "--minutes", "0", "--output", str(output)]) == 2
    assert "--minutes must be at least 1, got 0" in capsys.readouterr().err
