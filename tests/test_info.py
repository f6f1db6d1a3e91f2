"""Output of `sparse-vlm info`."""

import dataclasses
from pathlib import Path

import pytest

from sparse_vlm.encoder import SparseFormer, SparseFormerConfig, list_encoders
from sparse_vlm.errors import UserError
from sparse_vlm.info import describe


def test_without_a_name_every_variant_has_a_line() -> None:
    lines = describe(None).splitlines()
    assert [line.split()[0] for line in lines] == list_encoders()
    assert "63 + CLS tokens × 1024" in lines[-1]
    assert "49 tokens × 512" in lines[0]


def test_a_variant_and_a_directory_are_described(tiny_encoder: SparseFormer, tmp_path: Path) -> None:
    assert "16 sampling points" in describe("sparseformer-clip-b")
    tiny_encoder.save_pretrained(tmp_path / "encoder")
    text = describe(str(tmp_path / "encoder"))
    assert "6 + CLS tokens × 128" in text
    assert "2 blocks of vit_base_patch16_clip_quickgelu_224" in text
    assert "crop 64" in text


def test_registers_are_counted(tiny_config: SparseFormerConfig, tmp_path: Path) -> None:
    cortex = dataclasses.replace(tiny_config.cortex, architecture="vit_small_patch14_reg4_dinov2")
    SparseFormer(dataclasses.replace(tiny_config, cortex=cortex)).save_pretrained(tmp_path / "encoder")
    assert "6 + CLS + 4 registers tokens × 128" in describe(str(tmp_path / "encoder"))


def test_neither_is_an_error() -> None:
    with pytest.raises(UserError, match="Unknown encoder variant 'nothing'"):
        describe("nothing")


@pytest.mark.parametrize("name", ["nowhere/x", "./nowhere", "/nowhere", "nowhere/"])
def test_a_name_with_a_slash_is_a_directory(name: str) -> None:
    with pytest.raises(UserError, match=f"^There is no directory {name}\\.$"):
        describe(name)
