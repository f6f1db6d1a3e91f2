"""Clips of moving shapes and their twins, and the whole command on a tiny encoder."""

import json
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from eval.video.motion import DIRECTIONS, draw_twins, main
from sparse_vlm.encoder import Preprocessing
from sparse_vlm.encoder.preprocessing import Transform


def draw(seed: int, pairs: int = 8) -> tuple[Tensor, Tensor]:
    """Clips of five frames."""
    return draw_twins(random.Random(seed), pairs, 5, Transform(Preprocessing(resize=64, crop=64)))


def places(clip: Tensor) -> Tensor:
    """Centre (x, y) of what differs from the upper left pixel: float[T, 3, H, W] -> float[T, 2]"""
    shape = (clip - clip[:, :, :1, :1]).abs().sum(1) > 0.1
    return torch.stack([torch.nonzero(frame).flip(-1).float().mean(0) for frame in shape])


def test_shapes_move_where_they_are_said_to() -> None:
    clips, directions = draw(0)
    assert set(directions.tolist()) == set(range(len(DIRECTIONS)))
    for clip, direction in zip(clips, directions.tolist(), strict=True):
        way = places(clip)[-1] - places(clip)[0]
        axis, backwards = divmod(direction, 2)
        assert (way[axis] < 0) == bool(backwards)
        assert way[axis].abs() > 10
        assert way[1 - axis].abs() < 1.5  # of a side of at least 14


def test_a_mean_over_frames_is_the_same_for_twins() -> None:
    clips, _ = draw(1)
    assert torch.equal(clips[0::2], clips[1::2].flip(1))
    torch.testing.assert_close(clips[0::2].mean(1), clips[1::2].mean(1))


def test_clips_depend_on_the_seed() -> None:
    assert torch.equal(draw(0)[0], draw(0)[0])
    assert not torch.equal(draw(0)[0], draw(1)[0])


def test_the_command(encoder_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "motion.json"
    words = ["--encoder", str(encoder_dir), "--steps", "1", "--batch_size", "2", "--frames", "2", "--test_clips", "4"]
    assert main([*words, "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    assert set(result) == {"averaged frames", "clip, spans: 1", "clip, spans: 4", "dtype"}
    assert 0 <= result["clip, spans: 1"]["accuracy"] <= 1
    assert "clip, spans: 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--batch_size", "3"], "--batch_size must be even and at least 2, because each clip has a twin, got 3"),
        (["--test_clips", "0"], "--test_clips must be even and at least 2"),
        (["--spans", "1", "-1"], "--spans must not be negative, got -1"),
        (["--frames", "1"], "moves over at least 2 frames, got --frames 1"),
        (["--learning_rate", "0"], "--learning_rate must be positive, got 0"),
    ],
)
def test_bad_settings_are_refused(
    encoder_dir: Path, words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--encoder", str(encoder_dir), *words]) == 2
    assert sentence in capsys.readouterr().err.replace("\n", " ")
