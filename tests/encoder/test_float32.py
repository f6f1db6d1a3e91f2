"""Coordinates stay float32 whatever the model's dtype, and their error small."""

import pytest
import torch
from torch import Tensor

from sparse_vlm.encoder import SparseFormer, SparseFormerConfig
from sparse_vlm.encoder.float32 import Float32Module
from tests.encoder.parity.official import NAMES, load_official, recorded

# bfloat16 has 8 significant bits (relative rounding 2^-9 ≈ 0.002), which about ten residual blocks add up; float16 has
# 11 bits. RoIs, in parts of the image's side, inherit the error of the tokens that make them, not that of the format:
# 1e-2 is less than a sixth of a cell of these 16-cell maps. Measured: tokens ≤ 0.034, pooled ≤ 0.0083, RoIs ≤ 0.0049.
BOUNDS = {torch.bfloat16: (5e-2, 2e-2, 1e-2), torch.float16: (5e-3, 2e-3, 2e-3)}


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


def test_everything_that_makes_coordinates_keeps_float32(tiny_config: SparseFormerConfig) -> None:
    encoder = SparseFormer(tiny_config)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    encoder.to(torch.bfloat16).to("cpu").half()
    islands = [
        f"{name}.{key}"
        for name, module in encoder.named_modules()
        if isinstance(module, Float32Module)
        for key, _ in module.named_parameters()
    ]
    assert {name.split(".")[-2] for name in islands} >= {"initial_rois", "points", "norm", "linear", "hidden"}
    for key, value in encoder.state_dict().items():
        if key in islands:
            assert torch.equal(value, before[key]), key  # never rounded on the way
        else:
            assert value.dtype == torch.float16, key


def test_islands_still_change_device(tiny_config: SparseFormerConfig) -> None:
    encoder = SparseFormer(tiny_config).to("meta")
    assert {parameter.device.type for parameter in encoder.parameters()} == {"meta"}
    assert encoder.focus.initial_rois.weight.dtype == torch.float32


def test_float64_images_and_float64_models_keep_float32_coordinates(tiny_config: SparseFormerConfig) -> None:
    encoder = SparseFormer(tiny_config).double().eval()
    output = encoder(torch.randn(1, 3, 16, 16, dtype=torch.float64))
    assert output.rois.dtype == torch.float32
    assert output.tokens.dtype == torch.float64
