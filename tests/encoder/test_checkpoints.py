"""Files and directories of weights: loading is strict, and every error names the problem."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.checkpoints import read_weights
from sparse_vlm.errors import UserError
from tests.encoder.parity.official import load_official, official_config, weights_file

NAME = "btsp_clip_tiny"


def opening_fails(weights: dict[str, Tensor], directory: Path, name: str = NAME) -> str:
    """Error message when `weights` are loaded as an official tiny model."""
    save_file(weights, directory / "file.safetensors")
    with pytest.raises(UserError) as caught:
        SparseFormer.from_released(directory / "file.safetensors", official_config(name))
    return str(caught.value)


def test_unknown_and_missing_keys_and_shapes_are_named(tmp_path: Path) -> None:
    weights = load_file(weights_file(NAME))
    weights["layers.0.surprise.weight"] = weights.pop("layers.0.norm1.weight")
    weights["norm.bias"] = torch.zeros(7)
    message = opening_fails(weights, tmp_path)
    assert "missing: focus.repeated_unit.block.norm1.weight" in message
    assert "unknown: focus.repeated_unit.surprise.weight" in message
    assert "cortex.trunk.norm.bias is [7], expected [128]" in message
    assert "Is it another variant?" in message


@pytest.mark.parametrize(
    ("file", "variant"), [("v1_tiny", NAME), (NAME, "v1_tiny"), (NAME, "btsp_augreg_tiny")], ids=str
)
def test_another_variant_is_refused(file: str, variant: str, tmp_path: Path) -> None:
    assert "Is it another variant?" in opening_fails(load_file(weights_file(file)), tmp_path, variant)


def test_a_named_variant_is_in_the_message() -> None:
    with pytest.raises(UserError, match="as sparseformer-v1-t do not fit"):
        SparseFormer.from_released(weights_file("v1_tiny"), "sparseformer-v1-t")


@pytest.mark.parametrize(
    ("copied", "twin"),
    [
        ("layers.0.norm1.weight", "layers.0.ln_attn.weight"),
        ("initial_roi.weight", "token_roi.weight"),
        ("layers.3.norm1.weight", "blocks.0.norm1.weight"),
        ("norm.weight", "ln_post.weight"),
    ],
)
def test_one_weight_under_two_names_is_an_error(copied: str, twin: str, tmp_path: Path) -> None:
    weights = load_file(weights_file(NAME))
    weights[twin] = weights[copied] + 1
    message = opening_fails(weights, tmp_path)
    assert "contains a weight twice" in message
    assert twin.split(".")[-2] in message


def test_rois_in_both_forms_are_an_error(tmp_path: Path) -> None:
    weights = load_file(weights_file(NAME, "oldkeys_btsp"))
    weights["initial_roi.weight"] = torch.zeros(9, 4)
    assert "unknown: token_roi_cc.weight, token_roi_wh.weight" in opening_fails(weights, tmp_path)


def test_half_of_the_rois_is_an_error(tmp_path: Path) -> None:
    weights = load_file(weights_file(NAME, "oldkeys_btsp"))
    del weights["token_roi_wh.weight"]
    message = opening_fails(weights, tmp_path)
    assert "missing: focus.initial_rois.weight" in message
    assert "unknown: token_roi_cc.weight" in message


def test_further_old_names_and_global_roi(tmp_path: Path) -> None:
    """Names that the official tiny files do not contain: ln_post, cls_head and global_roi, which is dropped."""
    weights = load_file(weights_file(NAME, "oldkeys_btsp"))
    for old, new in (("ln_post", "norm"), ("cls_head", "proj")):
        for key in [key for key in weights if key.startswith(f"{new}.")]:
            weights[key.replace(new, old)] = weights.pop(key)
    weights["global_roi.weight"] = torch.zeros(1, 4)
    save_file(weights, tmp_path / "file.safetensors")
    ours = SparseFormer.from_released(tmp_path / "file.safetensors", official_config(NAME)).state_dict()
    assert all(torch.equal(ours[key], value) for key, value in load_official(NAME, "oldkeys_btsp").state_dict().items())


@pytest.mark.parametrize(
    "content", [b"", b"hello world\n", b"<html>404</html>", bytes(1000), b"\x80\x02ccollections\n"]
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_corrupt_files_are_refused(suffix: str, content: bytes, tmp_path: Path) -> None:
    file = tmp_path / f"damaged{suffix}"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged\.\w+ cannot be read as a checkpoint"):
        read_weights(file)


@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_cut_files_are_refused(layout: str, tmp_path: Path) -> None:
    file = tmp_path / "cut.pth"
    torch.save(load_file(weights_file(NAME)), file, _use_new_zipfile_serialization=layout == "zip")
    file.write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        read_weights(file)


@pytest.mark.parametrize(
    "content", [{"weight": [1.0]}, {"model": {"weight": 1}}, {0: torch.zeros(3)}, torch.zeros(3)], ids=str
)
def test_files_without_a_state_dict_are_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(UserError, match="does not contain a state dict"):
        read_weights(tmp_path / "file.pth")


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda w: {"state_dict": w, "epoch": 3, "args": argparse.Namespace(lr=0.1)}, ""),  # timm's train.py
        (lambda w: {"state_dict": {k: -v for k, v in w.items()}, "state_dict_ema": w}, "using state_dict_ema"),
        (lambda w: {"model": {f"module.{k}": v for k, v in w.items()}, "optimizer": {}}, ""),
        (lambda w: {"state_dict": {f"model._orig_mod.{k}": v for k, v in w.items()}}, ""),  # Lightning
        (lambda w: {f"module._orig_mod.{k}": v for k, v in w.items()}, ""),
        (lambda w: {"module": w}, ""),  # DeepSpeed
        (lambda w: {"model_state_dict": w}, ""),
        (lambda w: {f"student.{k}": v for k, v in w.items()}, ""),  # a checkpoint of train.bootstrap
        (lambda w: {"teacher": _dino(w), "student": {}}, ""),  # DINO's and DINOv2's
        (
            lambda w: {
                "model": {f"{branch}.{k}": v for branch in ("student", "teacher") for k, v in _dino(w).items()}
                | {"dino_loss.center": torch.zeros(1, 4)}
            },
            "",
        ),
    ],
)
def test_wrapped_state_dicts_are_unwrapped(
    wrap: Callable[[dict[str, torch.Tensor]], object], said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = {"stem.conv.weight": torch.randn(2), "cls_token": torch.randn(1)}
    torch.save(wrap(weights), tmp_path / "file.pth")
    found = read_weights(tmp_path / "file.pth")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], value) for key, value in weights.items())
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)


def _dino(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    heads = {"dino_head.mlp.0.weight": torch.zeros(2), "ibot_head.last_layer.weight": torch.zeros(2)}
    return {f"backbone.{name}": value for name, value in weights.items()} | heads


@pytest.mark.parametrize("stray", ["decode_head.weight", "criterion.weight"])
def test_unknown_weights_are_kept_for_the_strict_load(stray: str, tmp_path: Path) -> None:
    weights = {"backbone.cls_token": torch.zeros(1), stray: torch.zeros(1)}
    torch.save({"state_dict": weights}, tmp_path / "file.pth")
    assert read_weights(tmp_path / "file.pth").keys() == weights.keys()


@pytest.mark.parametrize("size", [(4, 2), (3,), (3, 4)])
def test_malformed_tables_of_initial_rois(size: tuple[int, ...], tmp_path: Path) -> None:
    center = torch.zeros(3, 2) if len(size) == 2 and size[1] == 2 else torch.zeros(size)
    torch.save({"token_roi_cc.weight": center, "token_roi_wh.weight": torch.zeros(size)}, tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"token_roi_wh\.weight must both be float\[tokens, 2\], got"):
        SparseFormer.from_released(tmp_path / "file.pth", "sparseformer-v1-t")


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "file.pth")
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        read_weights(tmp_path / "file.pth")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no checkpoint file .*gone\.pth"):
        SparseFormer.from_released(tmp_path / "gone.pth", "sparseformer-v1-t")


def test_incomplete_directories_are_refused(tiny_encoder: SparseFormer, tmp_path: Path) -> None:
    directory = tmp_path / "encoder"
    with pytest.raises(UserError, match="There is no encoder directory"):
        SparseFormer.from_pretrained(directory)
    tiny_encoder.save_pretrained(directory)
    values = json.loads((directory / "config.json").read_text())
    for content, sentence in [
        (json.dumps(values | {"model_type": "bert"}), "of type 'bert'"),
        (json.dumps(values | {"stem": {"channels": 16}}), "shapes: "),
        ("{", "not valid JSON"),
    ]:
        (directory / "config.json").write_text(content)
        with pytest.raises(UserError, match=sentence):
            SparseFormer.from_pretrained(directory)
    for file in ("model.safetensors", "config.json"):
        (directory / file).unlink()
        with pytest.raises(UserError, match=f"it has no {file}"):
            SparseFormer.from_pretrained(directory)


def test_saving_keeps_other_files_and_never_replaces_a_file(tiny_encoder: SparseFormer, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "notes").touch()
    tiny_encoder.save_pretrained(tmp_path / "old")
    written = ["README.md", "config.json", "model.safetensors"]
    assert sorted(path.name for path in (tmp_path / "old").iterdir()) == [*written, "notes"]
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"is a file\. Choose another name"):
        tiny_encoder.save_pretrained(tmp_path / "file")
