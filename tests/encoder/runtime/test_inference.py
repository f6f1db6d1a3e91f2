"""Packed weights give the same outputs, for SparseFormers and dense ViTs, and cannot be saved by mistake."""

from pathlib import Path

import pytest
import timm
import torch

from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.float32 import LINEAR
from sparse_vlm.encoder.runtime.inference import PackedLinear, optimize_for_inference
from sparse_vlm.errors import UserError
from tests.encoder.parity.official import NAMES, load_official, recorded, relative_errors


@pytest.mark.parametrize("name", NAMES)
def test_an_optimised_encoder_keeps_parity_with_the_authors(name: str) -> None:
    encoder = load_official(name)
    with torch.inference_mode():
        expected = encoder(recorded(name, "a")["input"])
        optimize_for_inference(encoder)
        found = encoder(recorded(name, "a")["input"])
    assert not [part for part in encoder.modules() if isinstance(part, LINEAR)]
    assert max(relative_errors(encoder, name, "b").values()) <= 1
    assert type(found) is type(expected)
    for ours, plain in zip(found[:3], expected[:3], strict=True):
        assert (ours - plain).norm() <= 1e-5 * plain.norm()


@torch.inference_mode()
def test_a_dense_vit_gives_the_same_output() -> None:
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5).eval()
    images = torch.randn(3, 3, 32, 32)
    expected = vit(images)
    optimize_for_inference(vit)
    assert sum(isinstance(part, PackedLinear) for part in vit.modules()) == 2 * 4 + 1
    torch.testing.assert_close(vit(images), expected, rtol=1e-5, atol=1e-5)


def test_packed_weights_are_not_saved(tiny_encoder: SparseFormer, tmp_path: Path) -> None:
    optimize_for_inference(tiny_encoder)
    with pytest.raises(UserError, match=r"weight is packed for inference and cannot be saved: save the model before"):
        tiny_encoder.save_pretrained(tmp_path / "encoder")
    assert not list(tmp_path.iterdir())


def test_other_dtypes_are_refused(tiny_encoder: SparseFormer) -> None:
    with pytest.raises(UserError, match=r"stem\.conv\.weight is torch\.bfloat16 on cpu"):
        optimize_for_inference(tiny_encoder.bfloat16())
