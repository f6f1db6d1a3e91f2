"""Coordinates stay float32 whatever the model's dtype and whichever library prepares it, and their error is small."""

from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from sparse_vlm.bootstrap import bootstrap_from, open_teacher
from sparse_vlm.encoder import SparseFormer, SparseFormerConfig
from sparse_vlm.encoder.float32 import Float32Linear, Float32Module
from sparse_vlm.encoder.model import EncoderOutput
from sparse_vlm.image_files import open_image
from tests.encoder.parity.official import NAMES, load_official, recorded

# bfloat16 has 8 significant bits (relative rounding 2^-9 ≈ 0.002), which about ten residual blocks add up; float16 has
# 11 bits. RoIs, in parts of the image's side, inherit the error of the tokens that make them, not that of the format:
# 1e-2 is less than a sixth of a cell of these 16-cell maps. Measured: tokens ≤ 0.034, pooled ≤ 0.0083, RoIs ≤ 0.0049.
BOUNDS = {torch.bfloat16: (5e-2, 2e-2, 1e-2), torch.float16: (5e-3, 2e-3, 2e-3)}

DATA = Path(__file__).parents[3] / "shared/data"
DINOV2 = DATA / "vit-small-patch14-dinov2-imgfocus/model_fp16.safetensors"
PHOTOGRAPHS = DATA / "imagenet-sample-1000/images"

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def relative(ours: Tensor, exact: Tensor) -> float:
    return ((ours.float() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("how", ["to bfloat16", "bfloat16()", "half", "autocast"])
@pytest.mark.parametrize("name", NAMES)
def test_low_precision_stays_close_with_float32_coordinates(name: str, how: str) -> None:
    images = recorded(name, "a")["input"]
    encoder = load_official(name)
    dtype = torch.float16 if how == "half" else torch.bfloat16
    with torch.no_grad():
        exact = encoder(images)
        if how == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                output = encoder(images)
        else:
            low = {"to bfloat16": lambda: encoder.to(dtype), "bfloat16()": encoder.bfloat16, "half": encoder.half}[
                how
            ]()
            assert low.stem.conv.weight.dtype == dtype
            output = low(images)
    assert output.rois.dtype == torch.float32
    assert output.tokens.dtype == output.pooled.dtype == dtype
    tokens, pooled, rois = BOUNDS[dtype]
    assert relative(output.tokens, exact.tokens) < tokens
    assert relative(output.pooled, exact.pooled) < pooled
    assert (output.rois - exact.rois).abs().max().item() < rois


@pytest.mark.skipif(
    not (DINOV2.is_file() and PHOTOGRAPHS.is_dir()), reason="needs ../shared/data with DINOv2 and photographs"
)
def test_embeddings_of_photographs_keep_their_direction_in_bfloat16() -> None:
    """With DINOv2's blocks. Measured, on AVX2 as with AMX: relative error ≤ 0.0083, cosine ≥ 0.99995."""
    torch.manual_seed(0)
    encoder, _ = bootstrap_from(open_teacher(f"timm:vit_small_patch14_dinov2@{DINOV2}", image_size=112), tokens=16)
    encoder.eval()
    photographs = [open_image(file) for file in sorted(PHOTOGRAPHS.iterdir())[:4]]
    images = torch.stack([encoder.transform(photograph) for photograph in photographs])
    with torch.inference_mode():
        exact, low = encoder(images).pooled, encoder.bfloat16()(images.bfloat16()).pooled
    assert low.dtype == torch.bfloat16
    assert relative(low, exact) < 0.01
    assert torch.cosine_similarity(low.float(), exact).min().item() > 0.9999


def test_everything_that_computes_coordinates_stays_float32(tiny_config: SparseFormerConfig) -> None:
    encoder = SparseFormer(tiny_config)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    encoder.to(torch.bfloat16).to("cpu").half()
    kept = [
        f"{name}.{key}"
        for name, module in encoder.named_modules()
        if isinstance(module, Float32Module)
        for key, _ in module.named_parameters()
    ]
    assert {name.split(".")[-2] for name in kept} >= {"initial_rois", "points", "norm", "linear", "hidden"}
    for key, value in encoder.state_dict().items():
        if key in kept:
            assert torch.equal(value, before[key]), key  # never rounded in between
        else:
            assert value.dtype == torch.float16, key


def test_float32_modules_change_device(tiny_config: SparseFormerConfig) -> None:
    encoder = SparseFormer(tiny_config).to("meta")
    assert {parameter.device.type for parameter in encoder.parameters()} == {"meta"}
    assert encoder.focus.initial_rois.weight.dtype == torch.float32


def test_float64_images_and_float64_models_keep_float32_coordinates(tiny_config: SparseFormerConfig) -> None:
    encoder = SparseFormer(tiny_config).double().eval()
    output = encoder(torch.randn(1, 3, 16, 16, dtype=torch.float64))
    assert output.rois.dtype == torch.float32
    assert output.tokens.dtype == torch.float64


@pytest.fixture
def encoder(tiny_encoder: SparseFormer) -> SparseFormer:
    """An encoder whose tokens move their RoIs; without training they do not, because the last layers are zero."""
    for part in tiny_encoder.modules():
        if isinstance(part, Float32Linear):
            nn.init.normal_(part.weight, std=0.3, generator=torch.Generator().manual_seed(0))
    return tiny_encoder


def coordinates(encoder: nn.Module) -> dict[str, Tensor]:
    """Parameters inside Float32Modules."""
    return {
        f"{prefix}.{name}": value
        for prefix, part in encoder.named_modules()
        if isinstance(part, Float32Module)
        for name, value in part.named_parameters()
    }


def test_a_float32_linear_equals_a_linear_except_for_its_type() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(5, 3)
    torch.manual_seed(0)
    ours = Float32Linear(5, 3)
    assert not isinstance(ours, nn.Linear)
    assert repr(ours) == repr(plain).replace("Linear", "Float32Linear")
    for name, value in plain.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)
    inputs = torch.randn(4, 5)
    assert torch.equal(ours(inputs), plain(inputs))
    assert "bias" not in Float32Linear(5, 3, bias=False).state_dict()


def test_deepspeed_communicates_coordinates_in_float32(encoder: SparseFormer) -> None:
    autocast = pytest.importorskip("deepspeed.runtime.torch_autocast")
    kept = autocast.TORCH_AUTOCAST_INITIALIZED, autocast.TORCH_AUTOCAST_DTYPE
    engine = SimpleNamespace(module=encoder, zero_quantized_weights=lambda: False)
    try:
        autocast.init_autocast_params(engine, torch.bfloat16, None)
    finally:
        autocast.TORCH_AUTOCAST_INITIALIZED, autocast.TORCH_AUTOCAST_DTYPE = kept
    assert autocast.has_comm_dtype(encoder.focus.transition[0].weight)
    found = coordinates(encoder)
    assert len(found) > 9
    assert not [name for name, value in found.items() if autocast.has_comm_dtype(value)]


def as_vllm(module: nn.Module, dtype: torch.dtype) -> None:
    """Do what vLLM's Transformers backend does: replace Linears and convolutions by its own in the model's dtype, and
    every other parameter by a new one in that dtype, into which weights are copied afterwards."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear | nn.Conv2d):
            module.set_submodule(name, child.to(dtype))
        else:
            as_vllm(child, dtype)
    for name, value in module.named_parameters(recurse=False):
        setattr(module, name, nn.Parameter(torch.empty_like(value, dtype=dtype)))


def equal(one: EncoderOutput, other: EncoderOutput) -> bool:
    """Compare everything except the hidden states."""
    return all(torch.equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))


@torch.no_grad()
def test_vllm_leaves_coordinates_float32(encoder: SparseFormer) -> None:
    weights = {name: value.clone() for name, value in encoder.state_dict().items()}
    expected = deepcopy(encoder).bfloat16()(IMAGES)
    assert (expected.rois[0] - expected.rois[-1]).abs().max() > 0.05
    as_vllm(encoder, torch.bfloat16)
    encoder.load_state_dict(weights)
    assert all(torch.equal(value, weights[name]) for name, value in coordinates(encoder).items())
    assert equal(encoder(IMAGES), expected)


@torch.no_grad()
def test_rounded_weights_are_still_computed_with_in_float32(encoder: SparseFormer) -> None:
    """Casting `data` of a parameter is invisible to its module."""
    rounded = deepcopy(encoder).bfloat16()
    for value in coordinates(rounded).values():
        value.copy_(value.bfloat16())
    for value in encoder.parameters():
        value.data = value.data.bfloat16()
    assert equal(encoder(IMAGES), rounded(IMAGES))


def test_bitsandbytes_does_not_quantise_them(encoder: SparseFormer) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    before = coordinates(encoder)
    replace_with_bnb_linear(encoder, [], BitsAndBytesConfig(load_in_8bit=True))
    assert isinstance(encoder.focus.transition[0], bitsandbytes.nn.Linear8bitLt)
    after = coordinates(encoder)
    assert before.keys() == after.keys()
    assert all(after[name] is value for name, value in before.items())


def test_peft_does_not_adapt_them(encoder: SparseFormer) -> None:
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(encoder, peft.LoraConfig(r=2, target_modules="all-linear"))
    with_adapters = [name for name, _ in adapted.named_parameters() if ".lora_A." in name]
    assert any(".mixing." in name for name in with_adapters)
    assert not [name for name in coordinates(adapted) if "lora" in name]
