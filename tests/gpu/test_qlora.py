"""QLoRA on a GPU has the losses of the CPU in float32."""

from pathlib import Path

import pytest
import torch

from tests.gpu.placed import TOLERANCE, placed
from tests.gpu.runs import LORA, instructed

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.mark.slow
def test_instruct(words_dir: Path, data_dir: Path, tmp_path: Path, device: torch.device) -> None:
    options = {**LORA, "bits": 4}
    expected = instructed(words_dir, data_dir, tmp_path / "cpu", **placed("cpu", bf16=False), **options)
    found = instructed(words_dir, data_dir, tmp_path / "out", **placed(device.type, bf16=True), **options)
    assert found == pytest.approx(expected, rel=TOLERANCE)
