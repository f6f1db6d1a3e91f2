"""Encoders inside model directories, and the commands `sparse-vlm info` and `sparse-vlm rois`."""

import json
import shutil
from pathlib import Path

import matplotlib.image
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sparse_vlm.cli import main
from sparse_vlm.encoder import SparseFormer
from sparse_vlm.errors import UserError
from sparse_vlm.info import describe
from sparse_vlm.model_directory import open_encoder, weight_shapes


def test_the_encoder_inside_a_model_directory(vlm_dir: Path, encoder_dir: Path) -> None:
    inside, alone = open_encoder(vlm_dir), open_encoder(encoder_dir)
    assert inside.config == alone.config
    assert not inside.training
    for name, value in alone.state_dict().items():
        assert torch.equal(inside.state_dict()[name], value)


def test_weights_in_several_files(vlm_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(vlm_dir, tmp_path / "vlm")
    weights = load_file(tmp_path / "vlm" / "model.safetensors")
    (tmp_path / "vlm" / "model.safetensors").unlink()
    names = sorted(weights)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: weights[name] for name in part}, tmp_path / "vlm" / f"model-{number}.safetensors")
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(open_encoder(tmp_path / "vlm")(images).tokens, open_encoder(vlm_dir)(images).tokens)
    assert describe(str(tmp_path / "vlm")).partition(":")[2] == describe(str(vlm_dir)).partition(":")[2]


def test_info_of_a_model_directory(vlm_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    total = sum(torch.Size(shape).numel() for shape in weight_shapes(vlm_dir).values())
    assert main(["info", str(vlm_dir)]) == 0
    text = capsys.readouterr().out
    assert f"6 visual tokens per image, {total / 1e6:.1f}M parameters (float32)" in text
    assert "llama, 2 layers × 48" in text
    assert "projector: mlp2x_gelu on hidden state -2" in text
    assert "vision encoder: 6 + CLS tokens × 128" in text


def change(directory: Path, **changes: object) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))


def test_damaged_directories(vlm_dir: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(vlm_dir, tmp_path / "vlm")
    weights = load_file(directory / "model.safetensors")
    save_file({name: value for name, value in weights.items() if "stem" not in name}, directory / "model.safetensors")
    with pytest.raises(
        UserError, match=r"vision tower of .*vlm do not fit \(missing: stem.conv.bias, stem.conv.weight"
    ):
        open_encoder(directory)
    (directory / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"model.safetensors cannot be read"):
        describe(str(directory))
    (directory / "model.safetensors").unlink()
    with pytest.raises(UserError, match="has no weights"):
        open_encoder(directory)
    change(directory, vision_config={"model_type": "clip_vision_model"})
    with pytest.raises(UserError, match=r"is a dense ViT \(clip_vision_model\), which has no RoIs"):
        open_encoder(directory)
    (directory / "config.json").write_text('{"model_type": "sparse_vlm"}')
    with pytest.raises(UserError, match=r"config\.json of .* is incomplete or damaged: KeyError\('vision_config'\)"):
        open_encoder(directory)
    (directory / "config.json").write_text("[]")
    with pytest.raises(UserError, match="must hold a JSON object, not a list"):
        describe(str(directory))
    (directory / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not valid JSON"):
        describe(str(directory))
    (directory / "config.json").unlink()
    (directory / "config.json").mkdir()
    with pytest.raises(UserError, match=r"config\.json cannot be read: Is a directory"):
        describe(str(directory))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["encoder_dir", "vlm_dir"])
def test_rois_command(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (90, 60), "red").save(tmp_path / "a.png")
    arguments = ["rois", str(tmp_path / "a.png"), "--model", str(request.getfixturevalue(kind))]
    assert main([*arguments, "-o", str(tmp_path / "ROIS.PNG"), "--max_tokens", "3"]) == 0
    assert matplotlib.image.imread(tmp_path / "ROIS.PNG", format="png").std() > 0.05
    capsys.readouterr()
    assert main([*arguments, "-o", str(tmp_path / "rois.png"), "--max_tokens", "3"]) == 0
    assert capsys.readouterr().out == f"RoIs and sampling points: {tmp_path}/rois.png\n"
    assert matplotlib.image.imread(tmp_path / "rois.png").std() > 0.05


def test_rois_refuses_bad_input(tiny_encoder: SparseFormer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (90, 60), "red").save(tmp_path / "a.png")
    for arguments, sentence in [
        ([str(tmp_path / "a.png"), "--model", str(tmp_path / "none")], "There is no encoder directory"),
        ([str(tmp_path / "b.png"), "--model", str(tmp_path)], "b.png does not exist"),
        ([str(tmp_path / "a.png"), "--model", str(tmp_path)], "it has no config.json"),
        ([str(tmp_path / "a.png"), "--model", "any", "--max_tokens", "0"], "--max_tokens must be 1 or more, got 0."),
        ([str(tmp_path / "a.png"), "--model", "any", "-o", "out.doc"], "out.doc must be one of .png, .svg, .pdf."),
    ]:
        assert main(["rois", "-o", str(tmp_path / "out.png"), *arguments]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()
