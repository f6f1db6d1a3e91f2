"""Packed conversations have the losses of padded ones; on a GPU, with flash attention."""

from pathlib import Path

import pytest
import torch

from tests.gpu.placed import placed
from tests.gpu.runs import instructed


@pytest.mark.slow
def test_packed_equals_padded(words_dir: Path, data_dir: Path, tmp_path: Path, device: torch.device) -> None:
    attention = "sdpa"
    if device.type == "cuda":
        pytest.importorskip("flash_attn")
        attention = "flash_attention_2"
    options = placed(device.type, bf16=True)
    expected = instructed(words_dir, data_dir, tmp_path / "padded", **options)
    packed = {"packing": True, "attn_implementation": attention}
    assert instructed(words_dir, data_dir, tmp_path / "packed", **options, **packed) == pytest.approx(
        expected, rel=0.02
    )
