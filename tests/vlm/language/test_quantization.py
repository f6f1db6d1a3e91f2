"""Quantizers change the language model only, however it is opened, and 4-bit layers compute with their weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, pipeline
from transformers.quantizers import HfQuantizer, auto
from transformers.utils.quantization_config import QuantizationConfigMixin

from sparse_vlm.errors import UserError
from sparse_vlm.vlm.chat import GREEDY, answer, encode_prompt
from sparse_vlm.vlm.language.quantization import keep_four_bit_layout, quantization
from sparse_vlm.vlm.loading import load_vlm
from tests.forked import run_program
from tests.vlm.conftest import Loaded

bitsandbytes = pytest.importorskip("bitsandbytes")
# int8 computes in float16 even in a float32 model
pytestmark = pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning")
QUESTIONS = ("What is shown?", "Which colour is it?", "Is it red?")


@pytest.fixture(params=[False, True], ids=["any CPU", "AVX512-BF16"])
def cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tell bitsandbytes whether the CPU has AVX512-BF16, for which it may repack 4-bit weights."""
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: request.param)


def settings(bits: int, **options: Any) -> BitsAndBytesConfig:
    """Settings as users write them."""
    return BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8, **options)


def few_bits(model: nn.Module) -> list[str]:
    kinds = bitsandbytes.nn.Linear4bit | bitsandbytes.nn.Linear8bitLt
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


def kept(model: nn.Module) -> dict[str, Tensor]:
    """The weights of vision tower, projector and head."""
    parts = ("vision_tower.", "multi_modal_projector.", "lm_head.")
    return {name: value for name, value in model.state_dict().items() if any(part in name for part in parts)}


@pytest.mark.parametrize("own", [{}, {"llm_int8_skip_modules": ["down_proj"]}])
@pytest.mark.parametrize("bits", [4, 8])
def test_only_the_language_model_is_quantized(
    vlm_dir: Path, vlm: Loaded, bits: int, own: dict[str, Any], images: list[Image.Image]
) -> None:
    model = AutoModelForImageTextToText.from_pretrained(vlm_dir, quantization_config=settings(bits, **own))
    names = few_bits(model)
    assert len(names) == 2 * (6 if own else 7)
    assert all(".language_model.layers." in name for name in names)
    expected = kept(vlm[0])
    assert kept(model).keys() == expected.keys()
    for name, value in kept(model).items():
        torch.testing.assert_close(value, expected[name], msg=name)
    assert answer(model, vlm[1], images[0], QUESTIONS[0], max_new_tokens=6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_unquantized_parts_have_the_requested_dtype(vlm_dir: Path, dtype: torch.dtype) -> None:
    for config in (None, settings(4)):
        model = AutoModelForImageTextToText.from_pretrained(vlm_dir, dtype=dtype, quantization_config=config)
        tower = model.model.vision_tower.encoder
        assert tower.cortex.trunk.blocks[0].attn.qkv.weight.dtype == model.lm_head.weight.dtype == dtype
        assert model.model.multi_modal_projector.linear_1.weight.dtype == dtype
        assert tower.focus.initial_rois.weight.dtype == torch.float32


@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_answers_equal_those_of_the_dequantized_weights(
    worded_vlm_dir: Path, images: list[Image.Image], kind: str, double: bool
) -> None:
    model, processor = load_vlm(worded_vlm_dir, quantization=quantization(4, torch.float32, kind, double=double))
    plain, _ = load_vlm(worded_vlm_dir)
    for name in few_bits(model):
        layer: Any = model.get_submodule(name)
        target: Any = plain.get_submodule(name)
        target.weight.data = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    asked = [(image, question) for image in images for question in QUESTIONS]
    found = [answer(model, processor, *one, max_new_tokens=6) for one in asked]
    assert found == [answer(plain, processor, *one, max_new_tokens=6) for one in asked]
    inputs = encode_prompt(processor, *asked[0])
    with torch.no_grad():
        expected = plain(**inputs).logits
        torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-3, rtol=1e-3)
        whole: Any = model.dequantize()  # earlier answers do not change the interpretation of the weights
        torch.testing.assert_close(whole(**inputs).logits, expected, atol=1e-3, rtol=1e-3)


@pytest.fixture
def layer() -> Any:
    """A layer as loaded by transformers on a CPU with AVX512-BF16, which may repack its weights."""
    torch.manual_seed(0)
    layer = bitsandbytes.nn.Linear4bit(128, 96, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    layer.to("cpu")
    layer.weight = layer.weight.to("cpu")
    layer.support_avx512bf16_for_cpu = True
    return layer


def test_gradients_after_an_evaluation_match_the_weights(layer: Any) -> None:
    weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    packed = layer.weight.data.clone()
    assert keep_four_bit_layout(torch.nn.Sequential(layer)) == 1
    inputs, direction = torch.randn(5, 128), torch.randn(5, 96)
    with torch.no_grad():
        layer.eval()(inputs)
    assert torch.equal(layer.weight.data, packed)
    inputs.requires_grad_(True)
    layer.train()(inputs).backward(direction)
    assert isinstance(inputs.grad, Tensor)
    torch.testing.assert_close(inputs.grad, direction @ weight, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("cpu")
def test_gradients_after_an_answer(vlm_dir: Path, images: list[Image.Image]) -> None:
    """The model is trained after it has answered a question."""
    model, processor = load_vlm(vlm_dir, quantization=quantization(4, torch.float32))
    inputs = encode_prompt(processor, images[0], QUESTIONS[0])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    answer(model, processor, images[0], QUESTIONS[0], max_new_tokens=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    ids: Any = inputs["input_ids"]
    model.train()(**inputs, labels=ids).loss.backward()
    gradient = model.model.multi_modal_projector.linear_1.weight.grad
    assert gradient is not None
    plain: Any = model.dequantize()
    plain.zero_grad()
    plain(**inputs, labels=ids).loss.backward()
    torch.testing.assert_close(gradient, plain.model.multi_modal_projector.linear_1.weight.grad, atol=1e-5, rtol=1e-3)


def test_saving_and_loading_a_quantized_model(
    vlm_dir: Path, vlm: Loaded, images: list[Image.Image], tmp_path: Path
) -> None:
    model = AutoModelForImageTextToText.from_pretrained(vlm_dir, quantization_config=settings(4))
    expected = answer(model, vlm[1], images[0], QUESTIONS[0], max_new_tokens=6)
    model.save_pretrained(tmp_path / "four")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "four")
    assert few_bits(again) == few_bits(model)
    assert answer(again, vlm[1], images[0], QUESTIONS[0], max_new_tokens=6) == expected


def test_pipeline(vlm_dir: Path, images: list[Image.Image]) -> None:
    ask = pipeline("image-text-to-text", model=str(vlm_dir), model_kwargs={"quantization_config": settings(4)})
    assert len(few_bits(ask.model)) == 2 * 7
    content = [{"type": "image", "image": images[0]}, {"type": "text", "text": QUESTIONS[0]}]
    messages = [{"role": "user", "content": content}]
    (result,) = ask(text=messages, max_new_tokens=6, generate_kwargs=dict(GREEDY), return_full_text=False)
    assert isinstance(result["generated_text"], str)


ALONE = """
import sys
sys.modules["sparse_vlm"] = None  # as if it were not installed
from transformers import dynamic_module_utils
dynamic_module_utils.HF_MODULES_CACHE = sys.argv[2]
from bitsandbytes.nn import Linear4bit
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig
model = AutoModelForImageTextToText.from_pretrained(
    sys.argv[1], trust_remote_code=True, quantization_config=BitsAndBytesConfig(load_in_4bit=True)
)
layers = {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}
assert len(layers) == 14 and all(".language_model.layers." in name for name in layers), layers
assert not any(layer.support_avx512bf16_for_cpu for layer in layers.values())
"""


@pytest.mark.slow
def test_a_process_without_sparse_vlm(vlm_dir: Path, tmp_path: Path) -> None:
    run_program(ALONE, str(vlm_dir), str(tmp_path / "modules"), folder=tmp_path)


class HeedlessSettings(QuantizationConfigMixin):
    """Settings of a quantizer that ignores exclusions."""

    def __init__(self) -> None:
        self.quant_method = "heedless"  # type: ignore[assignment]


class HeedlessQuantizer(HfQuantizer):
    """Replaces the weights of every Linear by integers."""

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight = nn.Parameter(module.weight.detach().to(torch.int8), requires_grad=False)
        return model


def test_a_quantizer_that_ignores_exclusions_is_refused(vlm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(auto.AUTO_QUANTIZER_MAPPING, "heedless", HeedlessQuantizer)
    monkeypatch.setitem(auto.AUTO_QUANTIZATION_CONFIG_MAPPING, "heedless", HeedlessSettings)
    with pytest.raises(UserError, match=r"This quantizer has replaced .*vision_tower.*weight, but vision tower"):
        AutoModelForImageTextToText.from_pretrained(vlm_dir, quantization_config=HeedlessSettings())
