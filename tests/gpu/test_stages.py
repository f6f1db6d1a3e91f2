"""The training stages of a VLM in bf16 on a GPU have the losses of the CPU in float32."""

from pathlib import Path

import pytest
import torch

from tests.gpu.placed import TOLERANCE, placed
from tests.gpu.runs import LORA, aligned, instructed

# peft 0.21 asks transformers 5.23 for a property under its old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.mark.slow
def test_align(words_dir: Path, data_dir: Path, tmp_path: Path, device: torch.device) -> None:
    expected = aligned(words_dir, data_dir, tmp_path / "cpu", **placed("cpu", bf16=False))
    found = aligned(words_dir, data_dir, tmp_path / "out", **placed(device.type, bf16=True))
    assert found == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [{}, LORA], ids=["full", "lora"])
def test_instruct(
    lora: dict[str, object], words_dir: Path, data_dir: Path, tmp_path: Path, device: torch.device
) -> None:
    expected = instructed(words_dir, data_dir, tmp_path / "cpu", **placed("cpu", bf16=False), **lora)
    found = instructed(words_dir, data_dir, tmp_path / "out", **placed(device.type, bf16=True), **lora)
    assert found == pytest.approx(expected, rel=TOLERANCE)
