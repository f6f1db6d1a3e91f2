"""Weights of open_clip have their activation, preprocessing and licence, even if loaded from a file."""

import logging
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from sparse_vlm.bootstrap import bootstrap_from, open_teacher
from sparse_vlm.bootstrap.clip import SparseClip
from sparse_vlm.bootstrap.teachers.open_clip_weights import licence_of, weights_options
from sparse_vlm.encoder import Preprocessing
from sparse_vlm.encoder.preprocessing import CLIP_MEAN, CLIP_STD, INCEPTION_MEAN
from sparse_vlm.errors import UserError
from tests.bootstrap.teachers.families import write_family
from tests.train.seeds.families import torchscript_archive

OPENAIS = Preprocessing(32, 32, CLIP_MEAN, CLIP_STD)


@pytest.fixture
def tagged_name(tiny_name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of the tiny CLIP, with open_clip's table of weights for ViT-L-14."""
    table = open_clip.pretrained._PRETRAINED
    monkeypatch.setitem(table, tiny_name, table["ViT-L-14"])
    return tiny_name


@pytest.mark.slow
def test_the_activation_belongs_to_the_weights() -> None:
    """By default, open_clip only warns that it uses the wrong activation for ViT-L-14 with OpenAI's weights."""
    assert weights_options("ViT-L-14", "openai")["force_quick_gelu"]
    assert not weights_options("ViT-L-14", "datacomp_xl_s13b_b90k")["force_quick_gelu"]
    assert open_teacher("open_clip:ViT-S-32", pretrained=False).cortex.architecture == "vit_base_patch16_clip_224"


def test_licences(tmp_path: Path) -> None:
    assert open_teacher("timm:vitamin_small_224", pretrained=False).licence == "mit"
    assert licence_of("timm/vit_large_patch14_clip_224.openai/") == "apache-2.0"  # from timm's table
    write_family("openai clip", tmp_path)
    assert open_teacher(str(tmp_path)).licence == ""
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# A model card\n")
    assert open_teacher(str(tmp_path)).licence == "cc-by-nc-4.0"


@pytest.mark.parametrize("card", [b"---\nlicense: mit: yes\n---\n", b"---\n- mit\n---\n", b"---\nlicense: \xff\n---\n"])
def test_an_unreadable_model_card_is_a_warning(card: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "README.md").write_bytes(card)
    assert licence_of(tmp_path) == ""
    assert f"The licence of the teacher's weights is unknown: cannot read {tmp_path / 'README.md'} (" in caplog.text


def test_an_open_clip_file_is_loaded_strictly(tiny_name: str, tmp_path: Path) -> None:
    encode_image = write_family("laion and datacomp clip", tmp_path)
    name, file = tiny_name, tmp_path / "model.safetensors"
    teacher = open_teacher(f"open_clip:{name}@{file}")
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(teacher(images), encode_image(images), rtol=1e-4, atol=1e-5)
    assert teacher.name == f"open_clip:{name}@model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if name != "visual.proj"}, file)
    with pytest.raises(UserError, match=r"open_clip cannot open .* Missing key\(s\) in state_dict: \"visual\.proj\""):
        open_teacher(f"open_clip:{name}@{file}")


def test_openais_archive_is_loaded_strictly(tagged_name: str, tmp_path: Path) -> None:
    """OpenAI publishes TorchScript, with three numbers beside the weights; the larger models are in float16."""
    encode_image = write_family("openai clip", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    numbers = {
        "input_resolution": torch.tensor(32),
        "context_length": torch.tensor(8),
        "vocab_size": torch.tensor(49408),
    }
    torchscript_archive(weights | numbers, tmp_path / "ViT-L-14.pt")
    images = torch.randn(2, 3, 32, 32)
    teacher = open_teacher(f"open_clip:{tagged_name}/openai@{tmp_path / 'ViT-L-14.pt'}")
    torch.testing.assert_close(teacher(images), encode_image(images), rtol=1e-4, atol=1e-5)
    torchscript_archive({name: value.half() for name, value in weights.items()} | numbers, tmp_path / "half.pt")
    assert open_teacher(f"open_clip:{tagged_name}/openai@{tmp_path / 'half.pt'}", image_size=64).grid == (4, 4)
    torchscript_archive({name: weights[name] for name in weights if name != "visual.proj"}, tmp_path / "part.pt")
    with pytest.raises(UserError, match=r"Missing key\(s\) in state_dict: \"visual\.proj\""):
        open_teacher(f"open_clip:{tagged_name}/openai@{tmp_path / 'part.pt'}")


@pytest.mark.parametrize(
    ("tag", "family", "preprocessing", "architecture", "licence"),
    [
        ("openai", "openai clip", OPENAIS, "vit_base_patch16_clip_quickgelu_224", "apache-2.0"),
        (
            "laion2b_s32b_b82k",
            "laion and datacomp clip",
            Preprocessing(32, 32, INCEPTION_MEAN, INCEPTION_MEAN),
            "vit_base_patch16_clip_224",
            "",
        ),
    ],
)
def test_a_file_has_the_properties_of_its_tag(
    tag: str,
    family: str,
    preprocessing: Preprocessing,
    architecture: str,
    licence: str,
    tagged_name: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Image and text encoder, and the saved model."""
    encode_image = write_family(family, tmp_path / "clip")
    spec = f"open_clip:{tagged_name}/{tag}@{tmp_path / 'clip/model.safetensors'}"
    teacher = open_teacher(spec)
    assert teacher.name == f"open_clip:{tagged_name}/{tag}@model.safetensors"
    assert (teacher.preprocessing, teacher.cortex.architecture) == (preprocessing, architecture)
    assert teacher.licence == licence
    assert "Assuming" not in caplog.text
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(teacher(images), encode_image(images), rtol=1e-4, atol=1e-5)
    captions = open_clip.tokenize(["a red circle"], context_length=8)
    expected = encode_image.__self__.encode_text(captions)  # type: ignore[attr-defined]
    student = bootstrap_from(teacher, tokens=4, repeats=1, stem_channels=8)[0]
    assert student.config.preprocessing == preprocessing
    clip = SparseClip.from_teacher(spec, student)
    clip.save(tmp_path / "saved")
    for made in (clip, SparseClip.load(tmp_path / "saved")):
        torch.testing.assert_close(made.model.encode_text(captions), expected)
        assert made.transform.preprocessing == preprocessing
    saved = open_clip.create_model(f"local-dir:{tmp_path / 'saved'}").visual.preprocess_cfg
    assert (saved["mean"], saved["std"]) == (list(preprocessing.mean), list(preprocessing.std))


def test_a_file_without_a_tag_has_the_logged_defaults(
    tagged_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_family("openai clip", tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "openai")  # a file named like a tag
    save_file(load_file(tmp_path / "openai"), tmp_path / "model.safetensors")
    with caplog.at_level(logging.WARNING, "sparse_vlm"):
        teacher = open_teacher(f"open_clip:{tagged_name}@model.safetensors")
    assert teacher.preprocessing == OPENAIS
    assert teacher.cortex.architecture == "vit_base_patch16_clip_224", "the activation is that of the name"
    assert teacher.licence == ""
    (said,) = [record.message for record in caplog.records if record.name.startswith("sparse_vlm")]
    assert said == (
        f"The pretrained weights of {tagged_name} differ in their preprocessing. Assuming for "
        f"open_clip:{tagged_name}@model.safetensors: mean {CLIP_MEAN}, std {CLIP_STD}, interpolation bicubic, "
        f"resize_mode shortest. Write open_clip:{tagged_name}/TAG@FILE to use that of a tag."
    )
    table = open_clip.pretrained._PRETRAINED
    monkeypatch.setitem(table, tagged_name, table["ViT-B-16-SigLIP2-256"])
    caplog.clear()
    agreed = open_teacher(f"open_clip:{tagged_name}@model.safetensors").preprocessing
    assert agreed == Preprocessing(32, 32, INCEPTION_MEAN, INCEPTION_MEAN, "bicubic", "squash")
    assert "Assuming" not in caplog.text
