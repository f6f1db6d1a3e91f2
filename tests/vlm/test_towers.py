"""Inside a VLM, open_clip's ViT and its preprocessing compute the same as open_clip itself."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPVisionModel

from sparse_vlm.cli import main
from sparse_vlm.encoder.preprocessing import INCEPTION_MEAN, INCEPTION_STD, Transform
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.answering import Answerer
from sparse_vlm.vlm.build import build_vlm
from sparse_vlm.vlm.chat import GREEDY, answer, encode_prompt
from sparse_vlm.vlm.conversation import Conversation
from sparse_vlm.vlm.loading import load_vlm
from sparse_vlm.vlm.towers import open_tower
from tests.vlm.conftest import Loaded, logits_of

VISION: dict[str, Any] = {"layers": 3, "width": 32, "head_width": 8, "patch_size": 8, "image_size": 32}
PREPROCESS: dict[str, Any] = {
    "mean": INCEPTION_MEAN,
    "std": INCEPTION_STD,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def write_clip(
    directory: Path, *, quick_gelu: bool = True, preprocess: dict[str, Any] = PREPROCESS, **vision: Any
) -> Path:
    """Write an open_clip directory with a random model, in which no weight has its initial 0 or 1."""
    torch.manual_seed(0)
    text = CLIPTextCfg(context_length=8, vocab_size=64, width=16, heads=2, layers=1)
    clip = CLIP(embed_dim=12, vision_cfg=CLIPVisionCfg(**VISION | vision), text_cfg=text, quick_gelu=quick_gelu)
    for parameter in clip.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    directory.mkdir(parents=True)
    save_file(clip.state_dict(), directory / "open_clip_model.safetensors")
    model = {
        "embed_dim": 12,
        "quick_gelu": quick_gelu,
        "vision_cfg": VISION | vision,
        "text_cfg": dataclasses.asdict(text),
    }
    (directory / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": preprocess}))
    return directory


@pytest.fixture(scope="module")
def clip_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture(scope="module")
def dense_dir(tmp_path_factory: pytest.TempPathFactory, clip_dir: Path, llm_dir: Path) -> Path:
    directory = tmp_path_factory.mktemp("dense") / "vlm"
    assert main(["build", str(clip_dir), str(llm_dir), str(directory)]) == 0
    return directory


@pytest.fixture(scope="module")
def dense(dense_dir: Path) -> Loaded:
    return load_vlm(dense_dir)


def reference_states(directory: Path, pixel_values: torch.Tensor) -> list[torch.Tensor]:
    """Compute open_clip's own hidden states: the input of the first block and the output of each."""
    visual = open_clip.create_model(f"local-dir:{directory}").visual.eval()
    states = [visual._embeds(pixel_values)]
    for block in visual.transformer.resblocks:
        states.append(block(states[-1]))
    return states


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [{}, {"quick_gelu": False}, {"quick_gelu": False, "act_kwargs": {"approximate": "tanh"}, "mlp_ratio": 2.5}],
)
def test_hidden_states_equal_those_of_open_clip(tmp_path: Path, options: dict[str, Any]) -> None:
    directory = write_clip(tmp_path / "clip", **options)
    pixel_values = torch.randn(2, 3, 32, 32)
    expected = reference_states(directory, pixel_values)
    tower = open_tower(directory)
    got = tower.model(pixel_values, output_hidden_states=True)
    assert len(got.hidden_states) == len(expected) == tower.depth + 1
    for mine, theirs in zip(got.hidden_states, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-5)
    clip = open_clip.create_model(f"local-dir:{directory}").eval()
    pooled = got.pooler_output @ clip.visual.proj
    torch.testing.assert_close(pooled, clip.encode_image(pixel_values), atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_activations_differ_by_more_than_the_tolerance(tmp_path: Path) -> None:
    """The test above would detect a wrong activation."""
    pixel_values = torch.randn(2, 3, 32, 32)
    states = [
        reference_states(write_clip(tmp_path / str(quick), quick_gelu=quick), pixel_values)[-2]
        for quick in (True, False)
    ]
    assert (states[0] - states[1]).abs().max() > 1e-2


def test_preprocessing_equals_that_of_open_clip(clip_dir: Path, dense: Loaded, images: list[Image.Image]) -> None:
    clip = open_clip.create_model(f"local-dir:{clip_dir}")
    theirs = image_transform_v2(PreprocessCfg(**clip.visual.preprocess_cfg), is_train=False)
    expected = torch.stack([theirs(image) for image in images])
    mine = torch.stack([Transform(open_tower(clip_dir).preprocessing)(image) for image in images])
    torch.testing.assert_close(mine, expected, atol=1e-6, rtol=0)  # the last bit of (x - mean) / std differs
    assert torch.equal(dense[1].image_processor(images, return_tensors="pt")["pixel_values"], mine)


@torch.no_grad()
def test_visual_tokens_are_the_patches_that_enter_the_last_block(
    clip_dir: Path, dense: Loaded, images: list[Image.Image]
) -> None:
    model, processor = dense
    assert processor.num_image_tokens == model.config.image_seq_length == 16
    assert type(model.model.vision_tower) is CLIPVisionModel
    pixel_values = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    got = torch.stack(model.model.get_image_features(pixel_values).pooler_output)
    expected = model.model.multi_modal_projector(reference_states(clip_dir, pixel_values)[-2][:, 1:])
    assert got.shape == (3, 16, 48)
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-5)
    assert not torch.allclose(got[0], got[1])


@pytest.mark.slow
@torch.no_grad()
def test_full_keeps_cls(tmp_path: Path, clip_dir: Path, llm_dir: Path, images: list[Image.Image]) -> None:
    build_vlm(clip_dir, llm_dir, tmp_path / "vlm", vision_feature_select_strategy="full")
    model, processor = load_vlm(tmp_path / "vlm")
    assert processor.num_image_tokens == 17
    assert model(**encode_prompt(processor, images[0], "What?")).logits.isfinite().all()


def test_the_generated_answer_depends_on_the_image(dense: Loaded, images: list[Image.Image]) -> None:
    model, processor = dense
    inputs = [encode_prompt(processor, image, "What?") for image in images]
    assert model.generate(**inputs[0], max_new_tokens=4, min_new_tokens=4, **GREEDY).shape[1] == (
        inputs[0]["input_ids"].shape[1] + 4
    )
    logits = [model(**one).logits[0, -1] for one in inputs[:2]]
    assert (logits[0] - logits[1]).abs().max() > 1e-3


@pytest.mark.slow
def test_saving_again_as_a_training_stage_does(tmp_path: Path, dense_dir: Path, images: list[Image.Image]) -> None:
    """transformers renames a CLIP tower's weights on saving, which the training stages disable."""
    loaded: Loaded = load_vlm(dense_dir)
    model, processor = loaded
    inputs = encode_prompt(processor, images[0], "What?")
    for number, prepare in enumerate((lambda: None, lambda: setattr(model, "_weight_conversions", []))):
        prepare()
        model.save_pretrained(tmp_path / str(number))
        processor.save_pretrained(tmp_path / str(number))
        again, _ = load_vlm(tmp_path / str(number))
        with torch.no_grad():
            assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def test_auto_classes_open_it(dense: Loaded, dense_dir: Path, images: list[Image.Image]) -> None:
    model = AutoModelForImageTextToText.from_pretrained(dense_dir)
    inputs = encode_prompt(AutoProcessor.from_pretrained(dense_dir), images[0], "What?")
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, dense[0](**inputs).logits)


def test_loss_reaches_projector_and_tower(dense_dir: Path, images: list[Image.Image]) -> None:
    loaded: Loaded = load_vlm(dense_dir)
    model, processor = loaded
    inputs = encode_prompt(processor, images[0], "What?")
    model(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
    assert model.model.multi_modal_projector.linear_1.weight.grad.abs().max() > 0
    assert model.model.vision_tower.embeddings.patch_embedding.weight.grad.abs().max() > 0


def without_weights(directory: Path) -> None:
    (directory / "open_clip_model.safetensors").unlink()


def damaged_weights(directory: Path) -> None:
    (directory / "open_clip_model.safetensors").write_bytes(b"no weights")


def damaged_config(directory: Path) -> None:
    (directory / "open_clip_config.json").write_text("{")


@pytest.mark.parametrize("damage", [without_weights, damaged_weights, damaged_config])
def test_incomplete_directory(tmp_path: Path, damage: Callable[[Path], None], capsys: pytest.CaptureFixture) -> None:
    directory = write_clip(tmp_path / "clip")
    damage(directory)
    assert main(["build", str(directory), "any/llm", str(tmp_path / "out")]) == 2
    assert f"open_clip cannot open {directory}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ls_init_value": 0.1}, r"do not fit \(unknown: encoder\.layers\.0\.ls_1\.gamma"),
        ({"no_ln_pre": True}, r"do not fit \(missing: pre_layrnorm\.bias"),
        ({"qk_norm": True}, r"unknown: .*ln_k"),
        ({"image_size": [32, 64]}, "to 32×64 pixels"),
        ({"preprocess": PREPROCESS | {"resize_mode": "longest"}}, "Unknown resize mode 'longest'"),
        ({"timm_model_name": "vit_tiny_patch16_224", "image_size": 224, "timm_pool": ""}, r"is a TimmModel\. Only"),
    ],
)
def test_other_networks_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_tower(write_clip(tmp_path / "clip", **options))


def test_a_directory_without_an_encoder(tmp_path: Path, llm_dir: Path) -> None:
    with pytest.raises(UserError, match=r"neither a SparseFormer \(config.json\) nor an open_clip model"):
        open_tower(tmp_path)
    with pytest.raises(UserError, match="There is no encoder directory"):
        open_tower(tmp_path / "none")
    with pytest.raises(UserError, match="of type 'llama', not a SparseFormer"):
        open_tower(llm_dir)


def test_a_dense_tower_refuses_other_numbers_of_tokens(dense: Loaded, images: list[Image.Image]) -> None:
    model, processor = dense
    default = encode_prompt(processor, images[0], "What?", visual_tokens=processor.num_image_tokens)
    assert logits_of(model, default).isfinite().all()
    with pytest.raises(UserError, match="Only a SparseFormer"):
        logits_of(model, encode_prompt(processor, images[0], "What?", visual_tokens=5))
    with pytest.raises(UserError, match="Only a SparseFormer"):
        Answerer(model, processor, 4, visual_tokens=5)
    own = Answerer(model, processor, 4, visual_tokens=processor.num_image_tokens)
    (batch,) = own.answer(images[:1], [(0, "What?")])
    assert batch == [(0, answer(model, processor, images[0], "What?", 4))]


def test_a_dense_tower_refuses_regions_before_it_runs(
    dense: Loaded, dense_dir: Path, images: list[Image.Image], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, processor = dense
    conversation = Conversation(model, processor)
    conversation.show(images[0])
    with pytest.raises(UserError, match="Only a SparseFormer"):
        conversation.look_at((0.0, 0.0, 1.0, 1.0))
    images[0].save(tmp_path / "a.png")
    for option, value in (("--visual_tokens", "9"), ("--region", "0,0,1,1")):
        command = ["chat", "--model", str(dense_dir), "--image", str(tmp_path / "a.png"), option, value, "What?"]
        assert main(command) == 2
        assert capsys.readouterr().err == (
            "error: Only a SparseFormer takes a number of visual tokens or regions, but this vision tower is a dense "
            "ViT.\n"
        )
