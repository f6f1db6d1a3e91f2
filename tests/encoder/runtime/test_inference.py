"""A model with packed weights computes what the plain model computes, and refuses what it cannot do any more."""

import copy
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.float32 import LINEAR
from sparse_vlm.encoder.runtime.export import export_onnx
from sparse_vlm.encoder.runtime.inference import optimize_for_inference
from sparse_vlm.encoder.runtime.packed_linears import PackedLinear
from sparse_vlm.errors import UserError

BFLOAT16 = pytest.param(
    torch.bfloat16,
    marks=pytest.mark.skipif(
        not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN does not multiply bfloat16 here"
    ),
)


@pytest.fixture
def packed(tiny_encoder: SparseFormer) -> SparseFormer:
    encoder = copy.deepcopy(tiny_encoder)
    optimize_for_inference(encoder)
    return encoder


def images(batch: int = 2, side: int = 64) -> torch.Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_outputs_are_those_of_the_plain_encoder(mode: type, dtype: torch.dtype, tiny_encoder: SparseFormer) -> None:
    plain = tiny_encoder.to(dtype).requires_grad_(False)
    encoder = copy.deepcopy(plain)
    optimize_for_inference(encoder)
    bound = 1e-5 if dtype == torch.float32 else 0.03
    with mode():
        for batch, tokens in ((1, None), (3, None), (2, 7)):
            expected, found = plain(images(batch), tokens=tokens), encoder(images(batch), tokens=tokens)
            for ours, theirs in zip(found[:3], expected[:3], strict=True):
                assert ours.dtype == theirs.dtype
                torch.testing.assert_close(ours, theirs, rtol=bound, atol=bound)
        (state,) = encoder.hidden_states(images(), [-2])
        torch.testing.assert_close(state, plain.hidden_states(images(), [-2])[0], rtol=bound, atol=bound)


def test_every_linear_is_packed_and_none_is_held_twice(tiny_encoder: SparseFormer, packed: SparseFormer) -> None:
    linears = [name for name, module in tiny_encoder.named_modules() if isinstance(module, LINEAR)]
    assert [name for name, module in packed.named_modules() if isinstance(module, PackedLinear)] == linears
    assert not any(isinstance(module, LINEAR) for module in packed.modules())
    assert not {f"{name}.weight" for name in linears} & {name for name, _ in packed.named_parameters()}
    before = str(packed)
    optimize_for_inference(packed)
    assert str(packed) == before, "optimised twice is optimised once"


@torch.no_grad()
def test_a_dense_vit_is_packed_too() -> None:
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32).eval()
    expected = vit(images(side=32))
    optimize_for_inference(vit)
    torch.testing.assert_close(vit(images(side=32)), expected, rtol=1e-5, atol=1e-5)
    assert any(isinstance(module, PackedLinear) for module in vit.modules())


@torch.no_grad()
def test_autocast_changes_nothing(packed: SparseFormer, tiny_encoder: SparseFormer) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = packed(images()), tiny_encoder(images())
    torch.testing.assert_close(found.pooled.float(), expected.pooled.float(), rtol=0.05, atol=0.05)


def test_it_can_be_saved(packed: SparseFormer, tiny_encoder: SparseFormer, tmp_path: Path) -> None:
    packed.save_pretrained(tmp_path / "encoder")
    saved = SparseFormer.from_pretrained(tmp_path / "encoder").state_dict()
    expected = tiny_encoder.state_dict()
    assert saved.keys() == expected.keys()
    assert all(torch.equal(value, saved[name]) for name, value in expected.items())


def test_it_cannot_be_trained(packed: SparseFormer) -> None:
    with pytest.raises(UserError, match="was optimised for inference and cannot be trained: load it again"):
        packed(images().requires_grad_())
    assert not packed.training
    assert not any(weight.requires_grad for weight in packed.parameters())


@pytest.mark.parametrize("move", [lambda model: model.bfloat16(), lambda model: model.to("meta")])
def test_it_cannot_be_moved_or_cast(move, packed: SparseFormer) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match="was optimised for inference and cannot be moved or cast: load it again"):
        move(packed)


def test_it_stays_where_it_is(packed: SparseFormer) -> None:
    with torch.no_grad():
        expected = packed(images()).pooled
        torch.testing.assert_close(packed.to("cpu", torch.float32).eval()(images()).pooled, expected)


def test_it_cannot_be_copied_or_exported(packed: SparseFormer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be copied"):
        copy.deepcopy(packed)
    with pytest.raises(UserError, match="cannot be exported"):
        export_onnx(packed, tmp_path / "encoder.onnx")


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (nn.Linear(2, 2).half(), r"float32 or bfloat16, not in torch\.float16: call model\.float"),
        (nn.Linear(2, 2, device="meta"), "on the CPU or on one CUDA device, but this one is on meta"),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta")), "but this one is on cpu, meta"),
    ],
)
def test_other_models_are_refused(model: nn.Module, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        optimize_for_inference(nn.Sequential(model))
