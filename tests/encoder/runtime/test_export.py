"""Outputs of ONNX Runtime for exported files, on photographs of any batch and image size."""

import io
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from sparse_vlm.cli import main
from sparse_vlm.encoder import SparseFormer, SparseFormerConfig
from sparse_vlm.encoder.rois import lay_out_rois
from sparse_vlm.encoder.runtime.export import TOLERANCE, compare, embedding_cosines, export_onnx
from sparse_vlm.errors import UserError

PHOTOGRAPHS = Path(__file__).parents[4] / "shared/data/imagenet-sample-1000/images"


def photographs(encoder: SparseFormer, count: int) -> torch.Tensor:
    files = sorted(PHOTOGRAPHS.glob("*"))[:count]
    if not files:
        pytest.skip("../shared/data has no photographs")
    return torch.stack([encoder.transform(Image.open(file)) for file in files])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, encoder_dir: Path) -> Path:
    """`sparse-vlm export` of the tiny encoder."""
    file = tmp_path_factory.mktemp("onnx") / "new" / "encoder.onnx"
    with pytest.MonkeyPatch.context() as patch, io.StringIO() as said:
        patch.setattr(sys, "stdout", said)
        assert main(["export", str(encoder_dir), str(file)]) == 0
        assert said.getvalue().startswith(f"{file}: ONNX Runtime differs from PyTorch by ")
    assert [path.name for path in file.parent.iterdir()] == ["encoder.onnx"]
    return file


@pytest.mark.slow  # this test creates the exported file
def test_onnx_runtime_computes_the_same_on_photographs(exported: Path, encoder_dir: Path) -> None:
    encoder = SparseFormer.from_pretrained(encoder_dir)
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    for images in (photographs(encoder, 4), photographs(encoder, 1)[..., 20:150, 7:]):
        found = session.run(["tokens", "pooled", "rois"], {"images": images.numpy()})
        with torch.no_grad():
            expected = encoder(images)
        for ours, theirs in zip(expected[:3], found, strict=True):
            np.testing.assert_allclose(theirs, ours.numpy(), rtol=0, atol=1e-4 * ours.abs().max().item())


@pytest.mark.slow
def test_the_file_describes_itself(exported: Path, tiny_config: SparseFormerConfig) -> None:
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    config = json.loads(session.get_modelmeta().custom_metadata_map["config"])
    assert SparseFormerConfig.from_dict(config) == tiny_config
    assert [value.name for value in session.get_outputs()] == ["tokens", "pooled", "rois"]
    (images,) = session.get_inputs()
    assert (images.name, images.shape) == ("images", ["batch", 3, "height", "width"])


@pytest.mark.slow
def test_int8_quantises_everything_except_coordinates(
    tiny_encoder: SparseFormer, encoder_dir: Path, tmp_path: Path
) -> None:
    file = tmp_path / "int8.onnx"
    assert main(["export", str(encoder_dir), str(file), "--int8"]) == 0
    found = Counter(node.op_type for node in onnx.load(file).graph.node)["MatMulInteger"]
    focus, cortex = tiny_encoder.config.focus, tiny_encoder.config.cortex
    # Mixing: two Linears in the generator (constant in the first step), one at the end. Then blocks and transition.
    assert found == 3 * (focus.repeats + 1) - 2 + 4 * focus.repeats + 4 * cortex.depth + 1
    differences = compare(SparseFormer.from_pretrained(encoder_dir), file)
    assert 1e-4 < differences["pooled"] < 0.1
    assert differences["rois"] < 0.02


@pytest.mark.slow
def test_int8_is_compared_on_images_too(
    encoder_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(5):
        Image.effect_noise((70, 90), 20 + 40 * index).save(folder / f"{index}.png")
    file = tmp_path / "int8.onnx"
    monkeypatch.setattr("sparse_vlm.cli.export.LIMIT", 2)
    arguments = ["export", str(encoder_dir), str(file), "--int8", "--images", str(folder), str(folder / "0.png")]
    assert main(arguments) == 0
    assert "2 images: the cosine of the embeddings with PyTorch's is " in capsys.readouterr().out
    encoder = SparseFormer.from_pretrained(encoder_dir)
    images = [encoder.transform(Image.open(path)) for path in sorted(folder.iterdir())]
    cosines = embedding_cosines(encoder, file, images)
    assert cosines.shape == (5,)
    assert cosines.min() > 0.98
    with torch.no_grad():
        encoder.cortex.trunk.head.get_parameter("weight").neg_()
    torch.testing.assert_close(embedding_cosines(encoder, file, images[:1]), -cosines[:1])


def test_images_are_found_before_anything_is_written(
    encoder_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    file = tmp_path / "encoder.onnx"
    assert main(["export", str(encoder_dir), str(file), "--images", str(tmp_path / "empty")]) == 2
    assert "empty" in capsys.readouterr().err
    assert main(["export", str(encoder_dir), str(file), "--images", str(tmp_path), "--rois_input"]) == 2
    assert "leave out --rois_input or --images" in capsys.readouterr().err
    assert not file.exists()


@pytest.mark.slow
def test_another_encoder_differs(exported: Path, tiny_encoder: SparseFormer) -> None:
    assert min(compare(tiny_encoder, exported).values()) > 10 * TOLERANCE


@pytest.mark.slow
@torch.no_grad()
def test_an_encoder_that_has_diverged_is_refused(exported: Path, tiny_encoder: SparseFormer) -> None:
    tiny_encoder.focus.repeated_unit.adjustment.linear.weight.fill_(1e4)
    with pytest.raises(UserError, match="The encoder's tokens are not finite"):
        compare(tiny_encoder, exported)


def test_other_dtypes_are_refused(tiny_encoder: SparseFormer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"this one is torch\.bfloat16: call encoder\.float\(\) first"):
        export_onnx(tiny_encoder.bfloat16(), tmp_path / "encoder.onnx")


@pytest.mark.slow
def test_rois_may_be_an_input(encoder_dir: Path, tmp_path: Path) -> None:
    encoder = SparseFormer.from_pretrained(encoder_dir)
    differences = export_onnx(encoder, tmp_path / "encoder.onnx", rois_input=True)
    assert max(differences.values()) < TOLERANCE
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx", providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["images", "initial_rois"]
    images = torch.randn(2, 3, 50, 40)
    for count in (1, 3, 11):
        rois = lay_out_rois(count).expand(2, -1, -1)
        pooled = session.run(["pooled"], {"images": images.numpy(), "initial_rois": rois.numpy()})[0]
        with torch.no_grad():
            np.testing.assert_allclose(pooled, encoder(images, rois).pooled.numpy(), atol=1e-4)
