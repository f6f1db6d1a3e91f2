"""A bootstrap in bf16 on a GPU has the losses of the CPU in float32, and so does a resumed one."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.gpu.placed import TOLERANCE, losses, placed
from tests.train.vision.bootstrap_runs import arguments
from train import bootstrap


def run(teacher: Path, images: Path, out: Path, **options: object) -> list[float]:
    """Run a bootstrap and return its losses."""
    assert bootstrap.main(arguments(teacher, images, out, **options)) == 0
    return losses(out)


@pytest.mark.slow
def test_bootstrap(teacher_dir: Path, images: Path, tmp_path: Path, device: torch.device) -> None:
    expected = run(teacher_dir, images, tmp_path / "cpu", **placed("cpu", bf16=False))
    found = run(teacher_dir, images, tmp_path / "out", **placed(device.type, bf16=True))
    assert found == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.slow
def test_a_resumed_run_has_the_same_losses(
    teacher_dir: Path, images: Path, tmp_path: Path, device: torch.device
) -> None:
    """A GPU sums gradients in varying order, so the losses agree closely but not bitwise."""
    options = {**placed(device.type, bf16=True), "save_strategy": "steps", "save_steps": 2, "keep_checkpoints": True}
    whole = run(teacher_dir, images, tmp_path / "whole", save_total_limit=2, **options)
    (tmp_path / "again").mkdir()
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "again" / "checkpoint-2")
    assert run(teacher_dir, images, tmp_path / "again", **options) == pytest.approx(whole[2:], rel=1e-3)
