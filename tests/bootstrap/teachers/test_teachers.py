"""Teachers have the preprocessing of their weights, and errors say what to do. (Their outputs: test_families.py.)"""

import json
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from sparse_vlm.bootstrap import open_teacher
from sparse_vlm.encoder import Preprocessing
from sparse_vlm.encoder.preprocessing import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, INCEPTION_MEAN, Transform
from sparse_vlm.errors import UserError
from tests.bootstrap.teachers.families import write_family

DINOV2 = Path(__file__).parents[4] / "shared/data/vit-small-patch14-dinov2-imgfocus"


def test_the_text_encoder_gives_open_clips_embeddings(clip_dir: Path) -> None:
    teacher = open_teacher(str(clip_dir))
    clip = open_clip.create_model(f"local-dir:{clip_dir}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{clip_dir}")(["a red circle"])
    expected = torch.nn.functional.normalize(clip.encode_text(tokens), dim=-1)
    assert teacher.text is not None
    assert torch.allclose(teacher.text(["a red circle"]), expected, atol=2e-6)
    assert expected.shape[1] == teacher(torch.randn(1, 3, 32, 32)).shape[1]


def test_an_unavailable_tokenizer_only_affects_the_text_encoder(tmp_path: Path) -> None:
    write_family("siglip (open_clip)", tmp_path)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "from/the-hub"  # open_clip looks for it in the directory
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    teacher = open_teacher(str(tmp_path))
    assert teacher(torch.randn(1, 3, 160, 160)).isfinite().all()
    assert teacher.text is not None
    with pytest.raises(UserError, match=rf"open_clip cannot open the tokenizer of {tmp_path.name}: "):
        teacher.text(["a red circle"])


@pytest.mark.parametrize(
    ("name", "resize", "crop", "mean", "std"),
    [
        ("vit_tiny_patch16_224", 248, 224, INCEPTION_MEAN, INCEPTION_MEAN),  # timm rounds 224 / 0.9 down
        ("vit_tiny_patch16_384", 384, 384, INCEPTION_MEAN, INCEPTION_MEAN),
        ("deit3_small_patch16_224", 248, 224, IMAGENET_MEAN, IMAGENET_STD),
        ("vitamin_small_224", 248, 224, CLIP_MEAN, CLIP_STD),
    ],
)
def test_preprocessing_of_timm_models(name: str, resize: int, crop: int, mean: tuple, std: tuple) -> None:
    assert open_teacher(f"timm:{name}", pretrained=False).preprocessing == Preprocessing(resize, crop, mean, std)


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
def test_preprocessing_equals_timms(crop_mode: str, tmp_path: Path) -> None:
    write_family("siglip (timm)", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["pretrained_cfg"] |= {"crop_mode": crop_mode, "crop_pct": 0.9}
    (tmp_path / "config.json").write_text(json.dumps(config))
    teacher = open_teacher(str(tmp_path))
    image = Image.effect_noise((50, 71), 80).convert("RGB")
    expected = timm.data.create_transform(**timm.data.resolve_model_data_config(teacher.trunk))(image)
    torch.testing.assert_close(Transform(teacher.preprocessing)(image), expected)


def test_preprocessing_of_open_clip(tmp_path: Path) -> None:
    write_family("openai clip", tmp_path)
    expected = Preprocessing(32, 32, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), "bilinear", "squash")
    assert open_teacher(str(tmp_path)).preprocessing == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "size"), [("dinov2", 56), ("vitamin (timm)", 64), ("openai clip", 64), ("siglip (open_clip)", 64)]
)
def test_another_image_size_only_resamples_the_position_embeddings(family: str, size: int, tmp_path: Path) -> None:
    write_family(family, tmp_path)
    own, other = open_teacher(str(tmp_path)), open_teacher(str(tmp_path), image_size=size)
    assert other.preprocessing.crop == size
    rows, columns = other.grid
    assert other.tokens(torch.randn(1, 3, size, size)).shape[1] == other.trunk.num_prefix_tokens + rows * columns
    before, after = own.trunk.state_dict(), other.trunk.state_dict()
    assert {name for name in before | after if not torch.equal(before[name], after[name])} == {"pos_embed"}


def test_a_teacher_stays_frozen_and_in_eval_mode(clip_dir: Path) -> None:
    teacher = open_teacher(str(clip_dir)).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher(torch.randn(1, 3, 32, 32)).requires_grad
    assert not teacher.tokens(torch.randn(1, 3, 32, 32)).requires_grad


def test_names_do_not_contain_local_paths(clip_dir: Path) -> None:
    assert open_teacher(str(clip_dir)).name == clip_dir.name


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["open_clip:ViT-B-16-SigLIP", "open_clip:ViTamin-S"])
def test_open_clip_names_of_timm_models(spec: str) -> None:
    """They have the preprocessing that all weights of the name share."""
    teacher = open_teacher(spec, pretrained=False, image_size=64)
    siglip = Preprocessing(64, 64, INCEPTION_MEAN, INCEPTION_MEAN, "bicubic", "squash")
    assert teacher.preprocessing == (siglip if "SigLIP" in spec else Preprocessing(64, 64, CLIP_MEAN, CLIP_STD))
    assert teacher.grid == (4, 4)
    assert teacher.text is not None
    width = teacher.text.clip.text.output_dim
    assert teacher(torch.randn(1, 3, 64, 64)).shape == (1, width)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_timm_file_is_loaded_strictly(suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = timm.create_model("test_vit", pretrained=False).eval()
    file = tmp_path / f"weights{suffix}"
    save = save_file if suffix == ".safetensors" else torch.save
    save(original.state_dict(), file)
    teacher = open_teacher(f"timm:test_vit@{file}")
    images = torch.randn(2, 3, teacher.preprocessing.crop, teacher.preprocessing.crop)
    assert torch.equal(teacher(images), original(images))
    assert teacher.name == f"timm:test_vit@weights{suffix}"
    assert teacher.licence == "", "timm's default tag says nothing about this file"
    tagged = open_teacher(f"timm:test_vit.r160_in1k@{file}")
    assert (tagged.licence, tagged.preprocessing) == ("apache-2.0", teacher.preprocessing)
    with pytest.raises(UserError, match=r"Is it another variant\?"):
        open_teacher(f"timm:test_vit2@{file}")
    save({"norm.weight": torch.ones(64)}, file)
    with pytest.raises(UserError, match=r"missing: .*blocks\.0"):
        open_teacher(f"timm:test_vit@{file}")


def test_position_embeddings_of_another_model_that_cannot_be_resampled(tmp_path: Path) -> None:
    """For example those of DINOv2 for DINOv2 with registers: timm's conversion fails before names are compared."""
    foreign = {"pos_embed": torch.zeros(1, 105, 64), "patch_embed.proj.weight": torch.zeros(1)}
    save_file(foreign, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"w\.safetensors as test_vit do not fit \(.*Is it another variant\?"):
        open_teacher(f"timm:test_vit@{tmp_path / 'w.safetensors'}", image_size=64)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", bytes(1000)])
def test_damaged_weights(content: bytes, tiny_name: str, tmp_path: Path) -> None:
    (tmp_path / "file.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"file\.pth cannot be read as a checkpoint"):
        open_teacher(f"timm:test_vit@{tmp_path / 'file.pth'}")
    with pytest.raises(UserError, match=rf"open_clip cannot open open_clip:{tiny_name}@file\.pth: "):
        open_teacher(f"open_clip:{tiny_name}@{tmp_path / 'file.pth'}")
    for family, sentence in (("mae", "cannot be read as a checkpoint"), ("openai clip", "open_clip cannot open")):
        write_family(family, tmp_path / family)
        (tmp_path / family / "model.safetensors").write_bytes(content)
        with pytest.raises(UserError, match=sentence):
            open_teacher(str(tmp_path / family))


def test_a_missing_open_clip_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    for name in [name for name in sys.modules if name.startswith("sparse_vlm.bootstrap.teachers.open_clip")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match=r"needs open_clip: pip install 'sparse-vlm\[bootstrap\]'\."):
        open_teacher("open_clip:ViT-B-16/openai")


def test_incomplete_directories(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not contain a teacher: it has neither open_clip's"):
        open_teacher(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not a valid JSON object"):
        open_teacher(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "sparseformer"}')
    with pytest.raises(UserError, match=r"timm does not know the architecture '' of its config\.json"):
        open_teacher(str(tmp_path))
    for family, sentence in (("mae", "does not contain weights"), ("openai clip", "could not be loaded")):
        write_family(family, tmp_path / family)
        (tmp_path / family / "model.safetensors").unlink()
        with pytest.raises(UserError, match=sentence):
            open_teacher(str(tmp_path / family))
        assert open_teacher(str(tmp_path / family), pretrained=False).cortex.depth == 3


@pytest.mark.slow
@pytest.mark.skipif(not DINOV2.is_dir(), reason="needs ../shared/data with the DINOv2 weights")
def test_dinov2_from_a_file_gives_the_golden_features() -> None:
    teacher = open_teacher(f"timm:vit_small_patch14_dinov2.lvd142m@{DINOV2 / 'model_fp16.safetensors'}", image_size=224)
    golden = np.load(DINOV2 / "golden_onnx_features.npz")
    images = torch.from_numpy(golden["input"]).float()
    expected = torch.from_numpy(golden["last_hidden_state"]).float()
    tokens = teacher.trunk.norm(teacher.tokens(images))
    cosine = torch.nn.functional.cosine_similarity(tokens, expected, dim=-1)
    assert cosine.min() > 0.999, cosine.min()
    assert teacher.licence == "apache-2.0"


GRID, ROTARY = (
    "need a grid of features, and latent tokens have none",
    r"\(rotary positions\), and latent tokens have",
)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("vit_small", "not a directory. Write timm:NAME"),
        ("timm:", "not a directory. Write timm:NAME"),
        ("timm:vit_smal_patch16_224", "Did you mean 'vit_small_patch16_224'"),
        ("timm:vit_tiny_patch16_224.augreg_in21", "Unknown pretrained tag .* Did you mean 'augreg_in21k'"),
        ("timm:test_vit@nowhere.safetensors", "no weights file nowhere.safetensors"),
        ("open_clip:ViT-B-33", "Unknown open_clip model 'ViT-B-33'. Did you mean 'ViT-B-32'"),
        ("open_clip:ViT-B-32/openaj", "Unknown pretrained tag .* Did you mean 'openai'"),
        ("open_clip:ViT-B-32", "ViT-B-32 has several pretrained weights"),
        ("timm:convnext_atto", f"class ConvNeXt.* cannot be inherited: .* {GRID}"),
        ("timm:swin_tiny_patch4_window7_224", f"class SwinTransformer.*{GRID}"),
        ("timm:resnet18", f"class ResNet.*{GRID}"),
        ("timm:eva02_tiny_patch14_224", f"class Eva.*{ROTARY}"),
        ("timm:vit_small_patch16_dinov3", f"class Eva.*{ROTARY}"),
        ("timm:vit_pe_core_tiny_patch16_384", f"class Eva.*{ROTARY}"),
        ("timm:deit_tiny_distilled_patch16_224", "its second class token .* use the model without distillation"),
        ("timm:vit_dwee_patch16_reg1_gap_256", "differential attention depends on the index of a block"),
        ("timm:naflexvit_base_patch16_gap", "class NaFlexVit.* only the blocks of timm's plain VisionTransformer"),
        ("timm:beit_base_patch16_224", "class Beit.* only the blocks of timm's plain VisionTransformer"),
        ("open_clip:EVA02-B-16/merged2b_s8b_b131k", f"class Eva.*{ROTARY}"),
        ("open_clip:convnext_base/laion400m_s13b_b51k", f"class ConvNeXt.*{GRID}"),
        ("open_clip:RN50/openai", f"class ModifiedResNet.*{GRID}"),
        ("open_clip:coca_ViT-B-32/laion2b_s13b_b90k", "no counterpart of its attentional pooling"),
    ],
)
def test_bad_specifications(spec: str, sentence: str) -> None:
    """Pretrained weights are requested: models that cannot be inherited are refused before the download."""
    with pytest.raises(UserError, match=sentence):
        open_teacher(spec)


@pytest.mark.parametrize(
    ("vision_cfg", "sentence"),
    [
        ({"layers": [1, 1, 1, 1], "width": 8, "image_size": 32}, f"class ModifiedResNet.*{GRID}"),
        ({"attentional_pool": True, "attn_pooler_heads": 2}, "no counterpart of its attentional pooling"),
        ({"qk_norm": True}, "no counterpart of its blocks of the type CustomResidualAttentionBlock"),
        ({"pool_type": "none"}, "no counterpart of its pooling 'none'"),
        ({"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "mlp"}, "no counterpart of its mlp"),
        ({"image_size": [32, 64]}, "expects images of 32×64 pixels: a teacher must have a square input"),
    ],
)
def test_open_clip_towers_that_cannot_be_inherited(vision_cfg: dict, sentence: str, tmp_path: Path) -> None:
    write_family("laion and datacomp clip", tmp_path)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"] |= vision_cfg
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=sentence):
        open_teacher(str(tmp_path), pretrained=False)


@pytest.mark.parametrize(
    ("family", "size", "sentence"),
    [
        (
            "dinov2",
            256,
            r"Patches of 14 .* images of 256 pixels: .* last 4 rows and columns\. Choose .* size 252 or 266\.",
        ),
        ("openai clip", 40, "Patches of 16 .* Choose the image size 32 or 48"),
        ("vitamin (timm)", 40, "Patches of 16 .* Choose the image size 32 or 48"),
        ("siglip (open_clip)", 40, "Patches of 16 .* Choose the image size 32 or 48"),
        ("openai clip", 9, "An image of 9 pixels is smaller than a patch"),
    ],
)
def test_sizes_that_the_patch_does_not_divide(family: str, size: int, sentence: str, tmp_path: Path) -> None:
    write_family(family, tmp_path)
    with pytest.raises(UserError, match=sentence):
        open_teacher(str(tmp_path), image_size=size)


def test_a_checkpoint_of_a_training_program(tmp_path: Path) -> None:
    original = timm.create_model("test_vit", pretrained=False).eval()
    wrapped = {f"module.{name}": value for name, value in original.state_dict().items()}
    torch.save({"state_dict": wrapped, "epoch": 3}, tmp_path / "last.pth.tar")
    teacher = open_teacher(f"timm:test_vit@{tmp_path / 'last.pth.tar'}")
    assert all(torch.equal(teacher.trunk.state_dict()[name], value) for name, value in original.state_dict().items())


@pytest.mark.parametrize(
    ("size", "sentence"), [(0, "must be positive, got 0"), (9, "An image of 9 pixels is smaller than a patch")]
)
def test_impossible_image_sizes(size: int, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        open_teacher("timm:test_vit", pretrained=False, image_size=size)
