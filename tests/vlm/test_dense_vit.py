"""Inside a VLM, any teacher computes the same hidden states as the teacher itself."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from sparse_vlm.bootstrap.teachers import open_teacher
from sparse_vlm.cli import main
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.chat import encode_prompt
from sparse_vlm.vlm.loading import load_vlm
from sparse_vlm.vlm.towers import open_tower
from sparse_vlm.vlm.vision import visual_tokens
from tests.vlm.conftest import Loaded, logits_of

TINY: dict[str, Any] = {"embed_dim": 32, "num_heads": 4, "depth": 4}


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of `timm.models.save_for_hf` with a small DINOv2 with registers, LayerScale and a head."""
    directory = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    name, options = "vit_small_patch14_reg4_dinov2", {**TINY, "img_size": 42, "num_classes": 5}
    model = timm.create_model(name, **options)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    save_file(model.state_dict(), directory / "model.safetensors")
    data = {"input_size": [3, 42, 42], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "interpolation": "bicubic"}
    config = {"architecture": name, "num_classes": 5, "model_args": options, "pretrained_cfg": data | {"crop_pct": 1.0}}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="module")
def vlm_of_teacher(tmp_path_factory: pytest.TempPathFactory, teacher_dir: Path, llm_dir: Path) -> Path:
    directory = tmp_path_factory.mktemp("dense") / "vlm"
    words = [str(teacher_dir), str(llm_dir), str(directory), "--image_size", "56", "--teacher_layer", "2"]
    assert main(["build", *words]) == 0
    return directory


@torch.no_grad()
@pytest.mark.parametrize("layer", [None, 2, -3])
def test_hidden_states_equal_those_of_the_teacher(teacher_dir: Path, layer: int | None) -> None:
    teacher = open_teacher(str(teacher_dir), image_size=56, layer=layer)
    tower = open_tower(teacher_dir, image_size=56, teacher_layer=layer)
    assert tower.depth == {None: 4, 2: 3, -3: 2}[layer]
    assert tower.preprocessing == teacher.preprocessing
    images = torch.randn(2, 3, 56, 56)
    got = tower.model(images, output_hidden_states=True)
    expected = teacher.tokens(images)
    assert expected.shape[1] == 1 + 4 + 16
    assert len(got.hidden_states) == tower.depth + 1
    assert torch.equal(got.last_hidden_state, torch.cat([expected[:, :1], expected[:, 5:]], dim=1))
    assert torch.equal(got.pooler_output, teacher(images))
    for index in (-2, 0, [1, -1]):
        chosen = tower.model(images, output_hidden_states=index).hidden_states
        for place in [index] if isinstance(index, int) else index:
            assert torch.equal(chosen[place], got.hidden_states[place])
    assert tower.model(images, output_hidden_states=0).last_hidden_state is None


def test_the_model_directory_opens_with_all_patches(vlm_of_teacher: Path, images: list[Image.Image]) -> None:
    loaded: Loaded = load_vlm(vlm_of_teacher)
    model, processor = loaded
    assert visual_tokens(model.config.vision_config) == (16, 1)
    assert processor.num_image_tokens == 16
    logits = [logits_of(model, encode_prompt(processor, image, "What?")) for image in images[:2]]
    assert (logits[0] - logits[1]).abs().max() > 1e-4
    with pytest.raises(UserError, match="Only a SparseFormer"):
        logits_of(model, encode_prompt(processor, images[0], "What?", visual_tokens=5))


def test_gradient_checkpointing_changes_no_gradient(teacher_dir: Path) -> None:
    images, gradients = torch.randn(1, 3, 42, 42), []
    for enable in (False, True):
        model = open_tower(teacher_dir).model
        model.gradient_checkpointing = enable
        model(images).last_hidden_state.square().sum().backward()
        gradients.append(model.trunk.blocks[0].attn.qkv.weight.grad)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1])


def test_an_open_clip_directory_can_be_cut(clip_dir: Path) -> None:
    tower = open_tower(clip_dir, image_size=16, teacher_layer=-2)
    assert tower.depth == 5
    assert visual_tokens(tower.model.config) == (4, 1)


def test_refusals(
    teacher_dir: Path, encoder_dir: Path, llm_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for source, options, message in [
        (encoder_dir, ["--image_size", "32"], f"--image_size and --teacher_layer are for a teacher, and {encoder_dir}"),
        (encoder_dir, ["--teacher_layer", "0"], "are for a teacher"),
        (teacher_dir, ["--teacher_layer", "7"], "has no block 7"),
        (teacher_dir, ["--image_size", "50"], "Choose the image size 42 or 56"),
        (teacher_dir, ["--aspect", "native"], "sees squares only"),
        ("timm:vit_smal_patch14_dinov2", [], "Did you mean 'vit_small_patch14_dinov2"),
    ]:
        assert main(["build", str(source), str(llm_dir), str(tmp_path / "out"), *options]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
