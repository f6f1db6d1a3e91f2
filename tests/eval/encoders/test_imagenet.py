"""Top-1 accuracy of a classification head on class folders."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from eval.encoders.imagenet import main, top_1
from sparse_vlm.encoder import SparseFormer, SparseFormerConfig
from sparse_vlm.encoder.preprocessing import Transform
from sparse_vlm.errors import UserError

COLOURS = {"a": ["red", "lime", "navy"], "b": ["blue", "white"], "c": ["black", "gold", "plum", "teal"]}


@pytest.fixture
def encoder_dir(tiny_config: SparseFormerConfig, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    encoder = SparseFormer(replace(tiny_config, cortex=replace(tiny_config.cortex, head_dim=3)))
    for parameter in encoder.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    encoder.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, colours in COLOURS.items():
        (tmp_path / "val" / name).mkdir(parents=True)
        for colour in colours:
            Image.new("RGB", (64, 64), colour).save(tmp_path / "val" / name / f"{colour}.png")
    return tmp_path / "val"


def test_top_1_counts_the_largest_logit(encoder_dir: Path, folder: Path, tmp_path: Path) -> None:
    encoder = SparseFormer.from_pretrained(encoder_dir)
    transform = Transform(encoder.config.preprocessing)
    hits = []
    for label, colours in enumerate(COLOURS.values()):
        for colour in colours:
            logits = encoder(transform(Image.new("RGB", (64, 64), colour))[None]).pooled
            hits.append(int(logits.argmax()) == label)
    assert 0 < sum(hits) < 9, "all or none would prove little"
    arguments = ["--encoder", str(encoder_dir), "--images", str(folder), "--device", "cpu", "--dtype", "float32"]
    assert main([*arguments, "--batch_size", "4", "--output", str(tmp_path / "top1.json")]) == 0
    result = json.loads((tmp_path / "top1.json").read_text())
    assert result["top1"] == sum(hits) / 9
    assert (result["images"], result["classes"], result["dtype"]) == (9, 3, "float32")
    low, high = result["confidence_95"]
    assert low < result["top1"] < high


def test_a_head_for_other_classes_is_refused(encoder_dir: Path, folder: Path) -> None:
    (folder / "d").mkdir()
    (folder / "a" / "red.png").rename(folder / "d" / "red.png")
    with pytest.raises(UserError, match=r"has 3 outputs, but .* has 4 classes"):
        top_1(encoder_dir, folder)
