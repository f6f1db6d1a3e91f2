"""4-bit weights: only the language model's, and the right gradients after an evaluation."""

import sys
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from torch import Tensor

from sparse_vlm.errors import UserError
from train.qlora import four_bits, keep_gradients_right
from train.stage import StageArguments
from train.vlm import ModelArguments, load


@pytest.fixture
def layer() -> Linear4bit:
    """As transformers loads it, and as it is on a CPU with AVX512-BF16: it may repack its weights."""
    torch.manual_seed(0)
    layer = Linear4bit(128, 96, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    layer.to("cpu")
    layer.weight = layer.weight.to("cpu")
    layer.support_avx512bf16_for_cpu = True
    return layer


def test_gradients_after_an_evaluation_are_those_of_the_weights(layer: Linear4bit) -> None:
    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    packed = layer.weight.data.clone()
    assert keep_gradients_right(torch.nn.Sequential(layer)) == 1
    inputs, direction = torch.randn(5, 128), torch.randn(5, 96)
    with torch.no_grad():
        layer.eval()(inputs)
    assert torch.equal(layer.weight.data, packed)
    inputs.requires_grad_(True)
    layer.train()(inputs).backward(direction)
    assert isinstance(inputs.grad, Tensor)
    torch.testing.assert_close(inputs.grad, direction @ weight, atol=1e-4, rtol=1e-4)


def test_the_language_model_alone_is_packed(vlm_dir: Path, tmp_path: Path) -> None:
    args = StageArguments(output_dir=str(tmp_path), use_cpu=True)
    model, _ = load(ModelArguments(str(vlm_dir)), args, four_bits("nf4", double=True, args=args))
    packed = [name for name, module in model.named_modules() if isinstance(module, Linear4bit)]
    assert len(packed) == keep_gradients_right(model) == 2 * 7
    assert all(".language_model.layers." in name for name in packed)
    assert all(parameter.dtype == torch.float32 for parameter in model.model.vision_tower.parameters())


@pytest.mark.usefixtures("zero3")
def test_zero3_is_refused(tmp_path: Path) -> None:
    args = StageArguments(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(UserError, match="--bits 4 does not go together with ZeRO-3"):
        four_bits("nf4", double=True, args=args)


def test_without_bitsandbytes_it_is_a_sentence(vlm_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And every other kind of tuning does without it."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    args = StageArguments(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(UserError, match="--bits 4 needs bitsandbytes: pip install bitsandbytes"):
        four_bits("nf4", double=True, args=args)
    assert keep_gradients_right(load(ModelArguments(str(vlm_dir)), args)[0]) == 0
