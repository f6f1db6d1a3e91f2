"""A SparseFormer in its teacher's CLIP: embeddings, zero-shot classification, open_clip's factories, directories."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from transformers import BertConfig

from sparse_vlm.bootstrap import bootstrap_from, open_teacher
from sparse_vlm.bootstrap.clip import SparseClip
from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.float32 import Float32Module
from sparse_vlm.encoder.rois import lay_out_rois
from sparse_vlm.errors import UserError
from sparse_vlm.integrations.timm import create_from_directory
from tests.bootstrap.teachers.families import FAMILIES, OPEN_CLIP, write_family
from tests.forked import run_program

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
CAPTIONS = ["a red circle", "a blue square", "nothing"]


@pytest.fixture(scope="module")
def student(clip_dir: Path) -> SparseFormer:
    torch.manual_seed(1)
    return bootstrap_from(open_teacher(str(clip_dir)), tokens=5, repeats=1, stem_channels=8)[0].eval()


@pytest.fixture(scope="module")
def clip(clip_dir: Path, student: SparseFormer) -> SparseClip:
    return SparseClip.from_teacher(str(clip_dir), student)


@pytest.fixture(scope="module")
def saved(clip: SparseClip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sparse_clip") / "clip"
    clip.save(directory)
    return directory


def test_images_are_encoded_by_the_student_and_captions_by_the_teacher(
    clip: SparseClip, clip_dir: Path, student: SparseFormer
) -> None:
    teacher = open_clip.create_model(f"local-dir:{clip_dir}").eval()
    tokens = clip.tokenizer(CAPTIONS)
    assert type(clip.model) is open_clip.CLIP
    assert torch.equal(clip.model.encode_image(IMAGES), student(IMAGES).pooled)
    assert torch.equal(clip.model.encode_text(tokens), teacher.encode_text(tokens))
    images, texts, scale = clip.model(IMAGES, tokens)
    assert torch.allclose(images, F.normalize(student(IMAGES).pooled, dim=-1))
    assert torch.allclose(texts, open_teacher(str(clip_dir)).text(CAPTIONS), atol=1e-6)
    assert scale == teacher.logit_scale.exp()


@pytest.mark.slow
@pytest.mark.parametrize("family", OPEN_CLIP)
def test_every_family_of_open_clip(family: str, tmp_path: Path) -> None:
    encode_image = write_family(family, tmp_path / "teacher")
    student = bootstrap_from(open_teacher(str(tmp_path / "teacher")), tokens=4, repeats=1, stem_channels=8)[0].eval()
    clip = SparseClip.from_teacher(str(tmp_path / "teacher"), student)
    assert torch.equal(clip.model.encode_image(IMAGES), student(IMAGES).pooled)
    tokens = clip.tokenizer(CAPTIONS)
    teacher = encode_image.__self__  # type: ignore[attr-defined]
    assert type(clip.model) is type(teacher)
    assert torch.equal(clip.model.encode_text(tokens), teacher.encode_text(tokens))
    clip.save(tmp_path / "clip")
    again = SparseClip.load(tmp_path / "clip")
    for ours, theirs in zip(clip.model(IMAGES, tokens), again.model(IMAGES, tokens), strict=True):
        assert torch.equal(ours, theirs)
    assert again.transform.preprocessing.resize_mode == "squash"


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_as_a_timm_model(family: str, tmp_path: Path) -> None:
    write_family(family, tmp_path / "teacher")
    student = bootstrap_from(open_teacher(str(tmp_path / "teacher")), tokens=4, repeats=1, stem_channels=8)[0].eval()
    student.save_pretrained(tmp_path / "student")
    model = create_from_directory(tmp_path / "student").eval()
    assert torch.equal(model(IMAGES), student(IMAGES).pooled)
    model.reset_classifier(3)
    model.save_pretrained(tmp_path / "classes")
    assert torch.equal(SparseFormer.from_pretrained(tmp_path / "classes")(IMAGES).pooled, model(IMAGES))


def test_open_clips_zero_shot_classifier(clip: SparseClip) -> None:
    templates = open_clip.OPENAI_IMAGENET_TEMPLATES[:2]
    weights = open_clip.build_zero_shot_classifier(clip.model, clip.tokenizer, CAPTIONS, templates)
    assert weights.shape == (24, 3)
    prompts = clip.tokenizer([template(CAPTIONS[1]) for template in templates])
    expected = F.normalize(clip.model.encode_text(prompts, normalize=True).mean(0), dim=0)
    assert torch.allclose(weights[:, 1], expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_open_clips_low_precision_keeps_coordinates_float32(clip: SparseClip, saved: Path, dtype: torch.dtype) -> None:
    model = SparseClip.load(saved).model
    islands = [part for part in model.modules() if isinstance(part, Float32Module)]
    before = [value.clone() for part in islands for value in part.state_dict().values()]
    open_clip.model.convert_weights_to_lp(model, dtype)
    assert model.visual.trunk.stem.conv.weight.dtype == dtype
    after = [value for part in islands for value in part.state_dict().values()]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    with torch.no_grad():
        low = model.encode_image(IMAGES.to(dtype), normalize=True)
        exact = clip.model.encode_image(IMAGES, normalize=True)
    assert low.dtype == dtype
    assert F.cosine_similarity(low.float(), exact).min() > 0.999


def test_saving_and_loading(clip: SparseClip, saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == [
        "open_clip_config.json",
        "open_clip_model.safetensors",
        "sparseformer.json",
    ]
    loaded = SparseClip.load(saved)
    assert loaded.encoder_config == clip.encoder_config
    assert loaded.model_config == clip.model_config
    assert not loaded.model.training
    tokens = clip.tokenizer(CAPTIONS)
    assert torch.equal(loaded.tokenizer(CAPTIONS), tokens)
    for ours, again in zip(clip.model(IMAGES, tokens), loaded.model(IMAGES, tokens), strict=True):
        assert torch.equal(ours, again)


def test_open_clips_own_factory_opens_it(clip: SparseClip, saved: Path) -> None:
    model, train_transform, transform = open_clip.create_model_and_transforms(f"local-dir:{saved}")
    model.eval()
    assert torch.equal(model.encode_image(IMAGES), clip.model.encode_image(IMAGES))
    image = Image.linear_gradient("L").resize((50, 40)).convert("RGB")
    assert transform(image).shape == train_transform(image).shape == (3, 32, 32)
    assert torch.allclose(transform(image), clip.transform(image), atol=0.05)


def test_the_interface_that_open_clips_training_needs(saved: Path) -> None:
    model = SparseClip.load(saved).model
    assert model.visual.image_size == (32, 32)
    assert model.visual.preprocess_cfg["mean"] == [0.4, 0.5, 0.6]
    assert "visual.trunk.focus.initial_rois.weight" not in {n for n, p in model.named_parameters() if p.ndim < 2}
    model.set_grad_checkpointing()
    assert model.visual.trunk.cortex.trunk.grad_checkpointing
    model.train()
    images, texts, scale = model(IMAGES, open_clip.tokenize(CAPTIONS[:2], context_length=8))
    open_clip.ClipLoss()(images, texts, scale).backward()
    assert model.visual.trunk.stem.conv.weight.grad.abs().sum() > 0
    model.lock_image_tower()
    assert not any(parameter.requires_grad for parameter in model.visual.parameters())


def test_a_released_architecture_by_name_in_open_clips_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vision = {"timm_model_name": "sparseformer_clip_base", "timm_pool": "token", "timm_proj": "", "image_size": 224}
    text = {"context_length": 8, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    (tmp_path / "SparseFormer-B.json").write_text(
        json.dumps({"embed_dim": 512, "vision_cfg": vision, "text_cfg": text, "quick_gelu": True})
    )
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", [*open_clip.factory._MODEL_CONFIG_PATHS])
    open_clip.add_model_config(tmp_path)
    with torch.device("meta"):
        model = open_clip.create_model("SparseFormer-B", device="meta")
    assert model.visual.trunk.get_classifier().weight.shape == (512, 768)
    assert model.visual.trunk.get_classifier().bias is None


@pytest.mark.slow
def test_open_clips_own_training_runs_on_it(saved: Path, tmp_path: Path) -> None:
    program = f"""
from sparse_vlm.bootstrap.clip import SparseClip
SparseClip.load({str(saved)!r})  # registers the architecture
from open_clip_train.main import main
main(["--model", "local-dir:{saved}", "--dataset-type", "synthetic", "--train-data", "none",
      "--train-num-samples", "8", "--batch-size", "4", "--epochs", "1", "--warmup", "1", "--workers", "0",
      "--device", "cpu", "--precision", "fp32", "--grad-checkpointing", "--save-frequency", "1",
      "--logs", {str(tmp_path)!r}, "--name", "run"])
"""
    run_program(program, folder=tmp_path)
    trained = torch.load(tmp_path / "run/checkpoints/epoch_1.pt", weights_only=False)["state_dict"]
    before = SparseClip.load(saved).model.state_dict()
    assert trained.keys() == before.keys()
    assert not torch.equal(trained["visual.trunk.stem.conv.weight"], before["visual.trunk.stem.conv.weight"])


def test_a_different_resize_size_is_logged(
    clip_dir: Path, student: SparseFormer, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(student.config, preprocessing=replace(student.config.preprocessing, resize=40))
    other = SparseFormer(config)
    SparseClip.from_teacher(str(clip_dir), other)
    assert "resizes to 32 pixels, but this SparseFormer's resizes to 40" in caplog.text


@pytest.mark.slow
def test_the_text_encoder_of_another_teacher_is_logged(
    clip_dir: Path, student: SparseFormer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    SparseClip.from_teacher(str(clip_dir), student)
    assert not caplog.text
    SparseClip.from_teacher(str(shutil.copytree(clip_dir, tmp_path / "another")), student)
    assert f"was bootstrapped from {clip_dir.name}, but the text encoder is that of another" in caplog.text


def test_bad_input_is_a_one_sentence_error(
    clip_dir: Path, student: SparseFormer, tiny_encoder: SparseFormer, saved: Path, tmp_path: Path
) -> None:
    for source, encoder, sentence in (
        (str(clip_dir), tiny_encoder, "have 24 channels, but those of the SparseFormer have 12"),
        ("timm:vit_base_patch16_224", student, "'timm:vit_base_patch16_224' has no text encoder"),
        ("open_clip:ViT-B-61/openai", student, "Unknown open_clip model 'ViT-B-61'. Did you mean 'ViT-B-16'"),
        ("open_clip:ViT-B-16/open", student, "Unknown pretrained tag of open_clip's ViT-B-16 'open'"),
        (f"open_clip:ViT-B-16@{tmp_path}/none.pt", student, "There is no weights file"),
        (str(tmp_path), student, "does not contain a teacher"),
    ):
        with pytest.raises(UserError, match=sentence):
            SparseClip.from_teacher(source, encoder)
    with pytest.raises(UserError, match=r"has no open_clip_config\.json"):
        SparseClip.load(tmp_path)
    broken = shutil.copytree(saved, tmp_path / "broken")
    (broken / "open_clip_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"open_clip cannot open .*broken"):
        SparseClip.load(broken)
    (broken / "sparseformer.json").write_text("{")
    with pytest.raises(UserError, match=r"sparseformer\.json is not valid JSON"):
        SparseClip.load(broken)


@torch.no_grad()
def test_forward_intermediates_of_open_clip(clip: SparseClip, student: SparseFormer) -> None:
    states = student(IMAGES).hidden_states
    got = clip.model.forward_intermediates(IMAGES, image_indices=[0, 2], image_output_fmt="NLC")
    for found, state in zip(got["image_intermediates"], (states[1], states[3]), strict=True):
        assert torch.equal(found, state[:, 1:])
    assert torch.allclose(got["image_features"], clip.model.encode_image(IMAGES, normalize=True), atol=1e-6)
    got = clip.model.visual.forward_intermediates(
        IMAGES, indices=1, output_fmt="NLC", output_extra_tokens=True, intermediates_only=True
    )
    assert torch.equal(got["image_intermediates_prefix"][0], states[-1][:, :1])
    with pytest.raises(UserError, match=r"have no grid: output_fmt must be 'NLC', got 'NCHW' \(open_clip: image_out"):
        clip.model.forward_intermediates(IMAGES)


def test_a_text_encoder_from_transformers_is_saved_too(clip_dir: Path, tmp_path: Path) -> None:
    """The folder of its configuration is deleted, and then the CLIP itself is moved."""
    bert = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=1, intermediate_size=32)
    bert.save_pretrained(tmp_path / "bert")
    text = {"hf_model_name": str(tmp_path / "bert"), "hf_proj_type": "mlp", "hf_pooler_type": "mean_pooler"}
    config = json.loads((clip_dir / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] = text | {"hf_model_pretrained": False}
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    (teacher / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    save_file(open_clip.CustomTextCLIP(**config["model_cfg"]).state_dict(), teacher / "open_clip_model.safetensors")
    student, _ = bootstrap_from(open_teacher(str(teacher)), tokens=4, repeats=1, stem_channels=8)
    clip = SparseClip.from_teacher(str(teacher), student)
    clip.save(tmp_path / "saved")
    shutil.rmtree(tmp_path / "bert")
    captions = torch.randint(1, 50, (2, 6), generator=torch.Generator().manual_seed(0))
    expected = clip.model.encode_text(captions)
    opened = open_clip.create_model(f"local-dir:{tmp_path / 'saved'}").eval()
    assert torch.equal(opened.encode_text(captions), expected)
    (tmp_path / "saved").rename(tmp_path / "moved")
    again = SparseClip.load(tmp_path / "moved")
    assert torch.equal(again.model.encode_text(captions), expected)
    again.save(tmp_path / "again")
    assert torch.equal(SparseClip.load(tmp_path / "again").model.encode_text(captions), expected)


@torch.no_grad()
def test_any_number_of_tokens(clip: SparseClip, student: SparseFormer) -> None:
    images = torch.randn(2, 3, 64, 64)
    expected = student(images, tokens=7).pooled
    torch.testing.assert_close(clip.encode_image(images, tokens=7), F.normalize(expected, dim=-1))
    features = clip.model.visual.trunk.forward_features(images, rois=lay_out_rois(7))
    assert features.shape[1] == student.num_prefix_tokens + 7
