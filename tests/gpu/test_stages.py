"""Each training stage in bf16 on a GPU follows the CPU in float32, and an interrupted run goes on as it was."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.gpu.runs import LORA, aligned, bootstrapped, instructed, placed

# peft 0.21 asks transformers 5.23 for a property under its old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
TOLERANCE = 0.03  # of a loss, after up to four steps in bf16; a CPU was seen to differ by 0.012


def test_bootstrap(teacher_dir: Path, images: Path, tmp_path: Path, device: torch.device) -> None:
    expected = bootstrapped(teacher_dir, images, tmp_path / "cpu", **placed("cpu", bf16=False))
    found = bootstrapped(teacher_dir, images, tmp_path / "out", **placed(device.type, bf16=True))
    assert found == pytest.approx(expected, rel=TOLERANCE)


def test_align(words_dir: Path, data_dir: Path, tmp_path: Path, device: torch.device) -> None:
    expected = aligned(words_dir, data_dir, tmp_path / "cpu", **placed("cpu", bf16=False))
    found = aligned(words_dir, data_dir, tmp_path / "out", **placed(device.type, bf16=True))
    assert found == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("lora", [{}, LORA], ids=["full", "lora"])
def test_instruct(
    lora: dict[str, object], words_dir: Path, data_dir: Path, tmp_path: Path, device: torch.device
) -> None:
    expected = instructed(words_dir, data_dir, tmp_path / "cpu", **placed("cpu", bf16=False), **lora)
    found = instructed(words_dir, data_dir, tmp_path / "out", **placed(device.type, bf16=True), **lora)
    assert found == pytest.approx(expected, rel=TOLERANCE)


def test_a_run_goes_on_with_the_same_losses(
    teacher_dir: Path, images: Path, tmp_path: Path, device: torch.device
) -> None:
    """Sums of gradients run in another order on a GPU, so the curves agree closely, not bit by bit."""
    options = {**placed(device.type, bf16=True), "save_strategy": "steps", "save_steps": 2, "keep_checkpoints": True}
    whole = bootstrapped(teacher_dir, images, tmp_path / "whole", save_total_limit=2, **options)
    (tmp_path / "again").mkdir()
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "again" / "checkpoint-2")
    assert bootstrapped(teacher_dir, images, tmp_path / "again", **options) == pytest.approx(whole[2:], rel=1e-3)
