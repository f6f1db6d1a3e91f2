"""Only the language model has 4-bit weights."""

import sys
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit

from sparse_vlm.errors import UserError
from sparse_vlm.vlm.language.quantization import keep_four_bit_layout
from train.language.qlora import qlora_config
from train.language.vlm import ModelArguments, load
from train.stages.stage import StageArguments


def test_only_the_language_model_is_quantised(vlm_dir: Path, tmp_path: Path) -> None:
    args = StageArguments(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    model, _ = load(ModelArguments(str(vlm_dir)), args, qlora_config("nf4", double=True, args=args))
    packed = [name for name, module in model.named_modules() if isinstance(module, Linear4bit)]
    assert len(packed) == 2 * 7
    assert all(".language_model.layers." in name for name in packed)
    assert not any(model.get_submodule(name).support_avx512bf16_for_cpu for name in packed)
    assert all(parameter.dtype == torch.float32 for parameter in model.model.vision_tower.parameters())


@pytest.mark.usefixtures("zero3")
def test_zero3_is_refused(tmp_path: Path) -> None:
    args = StageArguments(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(UserError, match="--bits 4 does not work with ZeRO-3"):
        qlora_config("nf4", double=True, args=args)


def test_missing_bitsandbytes_is_a_one_line_error(
    vlm_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All other kinds of tuning work without it."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    args = StageArguments(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(UserError, match="--bits 4 needs bitsandbytes: pip install bitsandbytes"):
        qlora_config("nf4", double=True, args=args)
    assert keep_four_bit_layout(load(ModelArguments(str(vlm_dir)), args)[0]) == 0
