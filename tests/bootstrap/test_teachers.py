"""Teachers give the numbers of the library they come from, and errors that say what to do."""

from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file

from sparse_vlm.bootstrap import open_teacher
from sparse_vlm.errors import UserError

DINOV2 = Path(__file__).parents[3] / "shared/data/vit-small-patch14-dinov2-imgfocus"


def test_an_open_clip_directory_gives_open_clips_embeddings(clip_dir: Path) -> None:
    teacher = open_teacher(str(clip_dir))
    clip = open_clip.create_model(f"local-dir:{clip_dir}").eval()
    images = torch.randn(2, 3, 32, 32)
    assert teacher(images).shape == (2, 24)
    assert torch.allclose(teacher(images), clip.encode_image(images), atol=2e-6)
    tokens = open_clip.get_tokenizer(f"local-dir:{clip_dir}")(["a red circle"])
    expected = torch.nn.functional.normalize(clip.encode_text(tokens), dim=-1)
    assert teacher.text is not None
    assert torch.allclose(teacher.text(["a red circle"]), expected, atol=2e-6)


def test_preprocessing_comes_with_the_teacher(clip_dir: Path) -> None:
    preprocessing = open_teacher(str(clip_dir)).preprocessing
    assert (preprocessing.crop, preprocessing.mean, preprocessing.std) == (32, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def test_a_teacher_stays_frozen_and_in_eval_mode(clip_dir: Path) -> None:
    teacher = open_teacher(str(clip_dir)).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher(torch.randn(1, 3, 32, 32)).requires_grad


def test_a_name_holds_no_path_of_this_machine(clip_dir: Path) -> None:
    assert open_teacher(str(clip_dir)).name == clip_dir.name


def test_gelu_models_of_open_clip_are_no_quick_gelu_models() -> None:
    assert open_teacher("open_clip:ViT-B-32", pretrained=False).cortex.architecture == "vit_base_patch16_clip_224"


def test_a_timm_file_is_loaded_strictly(tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = timm.create_model("test_vit", pretrained=False).eval()
    file = tmp_path / "weights.safetensors"
    save_file(original.state_dict(), file)
    teacher = open_teacher(f"timm:test_vit@{file}")
    images = torch.randn(2, 3, teacher.preprocessing.crop, teacher.preprocessing.crop)
    assert torch.equal(teacher(images), original(images))
    assert teacher.name == "timm:test_vit@weights.safetensors"
    save_file({"norm.weight": torch.ones(64)}, file)
    with pytest.raises(UserError, match=r"missing: .*blocks\.0"):
        open_teacher(f"timm:test_vit@{file}")


@pytest.mark.skipif(not DINOV2.is_dir(), reason="needs ../shared/data with the DINOv2 weights")
def test_dinov2_from_a_file_gives_the_golden_features() -> None:
    teacher = open_teacher(f"timm:vit_small_patch14_dinov2@{DINOV2 / 'model_fp16.safetensors'}", image_size=224)
    golden = np.load(DINOV2 / "golden_onnx_features.npz")
    images = torch.from_numpy(golden["input"]).float()
    expected = torch.from_numpy(golden["last_hidden_state"]).float()
    tokens = teacher.trunk.forward_features(images)
    cosine = torch.nn.functional.cosine_similarity(tokens, expected, dim=-1)
    assert cosine.min() > 0.999, cosine.min()
    assert teacher.licence == "apache-2.0"


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("vit_small", "no directory. Write timm:NAME"),
        ("timm:vit_smal_patch16_224", "Did you mean 'vit_small_patch16_224'"),
        ("timm:convnext_atto", "is a ConvNeXt"),
        ("timm:test_vit@nowhere.safetensors", "no weights file nowhere.safetensors"),
        ("open_clip:ViT-B-33", "Unknown open_clip model 'ViT-B-33'"),
        ("open_clip:ViT-B-32", "Which weights of ViT-B-32"),
        ("open_clip:RN50", "Which weights of RN50"),
    ],
)
def test_bad_specifications(spec: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        open_teacher(spec, pretrained=not spec.startswith("timm:convnext"))


def test_a_resnet_clip_cannot_be_inherited() -> None:
    with pytest.raises(UserError, match="is a ModifiedResNet"):
        open_teacher("open_clip:RN50", pretrained=False)
