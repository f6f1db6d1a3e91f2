"""The interface that LLaVA expects of a tower, tested without LLaVA."""

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig

from llava_patch.tower import RECORD, SparseFormerTower
from sparse_vlm.encoder import SparseFormer, SparseFormerConfig
from sparse_vlm.encoder.preprocessing import make_transform
from sparse_vlm.encoder.runtime.cuda_graphs import replay_from_graphs
from sparse_vlm.errors import UserError
from tests.encoder.runtime.replays import CpuRecorder


def arguments(**changes: Any) -> SimpleNamespace:
    """LLaVA's model arguments for training."""
    return SimpleNamespace(mm_vision_select_layer=-2, mm_vision_select_feature="patch", **changes)


def reload_config(directory: Path | None = None, **changes: Any) -> LlamaConfig:
    """LLaVA's model configuration when it reloads a checkpoint from `directory`."""
    config = LlamaConfig(mm_vision_select_layer=-2, mm_hidden_size=128, **changes)
    config._name_or_path = str(directory or "")
    return config


@pytest.fixture(scope="session")
def images() -> Tensor:
    """Two preprocessed images."""
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def loaded(tower: str) -> SparseFormerTower:
    """A tower built as in training."""
    return SparseFormerTower(tower, arguments())


def test_training_loads_immediately_and_freezes(loaded: SparseFormerTower, encoder_dir: Path, images: Tensor) -> None:
    assert loaded.is_loaded
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    out = loaded(images)
    expected = SparseFormer.from_pretrained(encoder_dir)(images).hidden_states[-2]
    assert torch.equal(out, expected[:, 1:])  # without CLS
    assert (loaded.hidden_size, loaded.num_patches, loaded.config.image_size) == (128, 6, 64)
    assert loaded.dummy_feature.shape == (1, 128)
    loaded.vision_tower.cortex.trunk.blocks[-1].register_forward_pre_hook(lambda *_: pytest.fail("it is not needed"))
    assert torch.equal(loaded(images), out)


@pytest.mark.parametrize(("layer", "feature", "tokens"), [(-1, "patch", 6), (-2, "cls_patch", 7), (-3, "patch", 6)])
def test_layers_and_features(
    tower: str, encoder_dir: Path, images: Tensor, layer: int, feature: str, tokens: int
) -> None:
    args = SimpleNamespace(mm_vision_select_layer=layer, mm_vision_select_feature=feature)
    out = SparseFormerTower(tower, args)(images)
    expected = SparseFormer.from_pretrained(encoder_dir)(images).hidden_states[layer]
    assert torch.equal(out, expected[:, -tokens:])


def test_a_list_is_encoded_one_by_one(loaded: SparseFormerTower, images: Tensor) -> None:
    out = loaded([images[0], images[1, :, :40]])
    assert [features.shape for features in out] == [(1, 6, 128)] * 2
    torch.testing.assert_close(out[0], loaded(images)[:1])


def test_reload_waits_for_load_model(tower: str, images: Tensor) -> None:
    with torch.device("meta"):  # as in from_pretrained
        late = SparseFormerTower(tower, reload_config(), delay_load=False)
    assert not late.is_loaded
    assert not list(late.parameters())
    assert (late.hidden_size, late.num_patches, late.config.image_size) == (128, 6, 64)
    assert late.image_processor.crop_size == {"height": 64, "width": 64}
    late.load_model(device_map="auto")
    first = late.vision_tower
    late.load_model(device_map={"": "cpu"})
    assert late.vision_tower is first
    assert not late(images).isnan().any()
    assert torch.equal(late(images), SparseFormerTower(tower, arguments())(images))


@pytest.mark.slow
def test_random_weights_are_reproducible(images: Tensor) -> None:
    name = "sparseformer-clip-b?weights=random&image_size=64"
    torch.manual_seed(5)
    one = SparseFormerTower(name, arguments())
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)  # the random state of the training is not changed
    two = SparseFormerTower(name, arguments())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert one.num_patches == 48


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_casts_keep_coordinates_float32(loaded: SparseFormerTower, images: Tensor, dtype: torch.dtype) -> None:
    reference = loaded(images)
    cast = copy.deepcopy(loaded).to(dtype=dtype)
    assert cast.dtype == dtype
    assert cast.vision_tower.focus.initial_rois.weight.dtype == torch.float32
    out = cast(images)
    assert out.dtype == torch.float32  # like the images
    assert (out - reference).norm() < 0.05 * reference.norm()


def test_gradients_follow_requires_grad(loaded: SparseFormerTower, images: Tensor) -> None:
    assert not loaded(images).requires_grad
    loaded.vision_tower.focus.requires_grad_(True)
    loaded(images).square().mean().backward()
    assert loaded.vision_tower.focus.transition[0].weight.grad is not None
    assert loaded.vision_tower.stem.conv.weight.grad is None
    with torch.no_grad():
        assert not loaded(images).requires_grad


def test_native_aspect_equals_encoding_the_whole_image(tower: str, encoder_dir: Path) -> None:
    native = SparseFormerTower(f"{tower}?aspect=native", arguments())
    image = torch.randn(3, 40, 64, generator=torch.Generator().manual_seed(0))
    canvas = torch.full((3, 64, 64), torch.nan)
    canvas[:, :40] = image
    out = native(torch.stack([canvas, torch.zeros(3, 64, 64)]))  # LLaVA passes zeros for a sample without an image
    expected = SparseFormer.from_pretrained(encoder_dir)(image[None]).hidden_states[-2][:, 1:]
    torch.testing.assert_close(out[:1], expected)
    assert out.shape == (2, 6, 128)


@pytest.mark.parametrize(("layer", "feature", "prefix"), [(-2, "patch", 0), (-1, "cls_patch", 1), (0, "patch", 0)])
@pytest.mark.parametrize("count", [1, 9, 25])
def test_the_name_requests_a_number_of_tokens(
    tower: str, encoder_dir: Path, images: Tensor, layer: int, feature: str, prefix: int, count: int
) -> None:
    args = SimpleNamespace(mm_vision_select_layer=layer, mm_vision_select_feature=feature)
    asked = SparseFormerTower(f"{tower}?tokens={count}", args)
    expected = SparseFormer.from_pretrained(encoder_dir)(images, tokens=count).hidden_states[layer]
    assert asked.num_patches == count
    assert asked(images).shape == (2, prefix + count, 128)
    assert torch.equal(asked(images), expected[:, 1 - prefix :])
    assert [features.shape for features in asked([images[0], images[1, :, :40]])] == [(1, prefix + count, 128)] * 2
    with pytest.raises(UserError, match=f"the {count} tokens of .* have no grid"):
        _ = asked.num_patches_per_side


def test_the_encoders_own_number_starts_in_its_own_rois(
    tiny_config: SparseFormerConfig, tmp_path: Path, images: Tensor
) -> None:
    encoder = SparseFormer(tiny_config).eval()
    with torch.no_grad():
        encoder.focus.initial_rois.weight.mul_(0.5)  # as if learned
    encoder.save_pretrained(tmp_path / "learned")
    name = f"sparseformer:{tmp_path / 'learned'}"
    plain, asked = (SparseFormerTower(text, arguments()) for text in (name, f"{name}?tokens=6"))
    assert torch.equal(asked(images), plain(images))


def test_a_number_of_tokens_in_native_aspect(tower: str, encoder_dir: Path) -> None:
    native = SparseFormerTower(f"{tower}?aspect=native&tokens=9&image_size=96", arguments())
    wide, high = Image.new("RGB", (96, 48), "red"), Image.new("RGB", (40, 80), "blue")
    out = native(native.image_processor([wide, high])["pixel_values"])
    assert out.shape == (2, 9, 128)
    encoder = SparseFormer.from_pretrained(encoder_dir)
    alone = make_transform(replace(encoder.config.preprocessing, resize=96, crop=96), "native")(wide)
    expected = encoder(alone[None, :, :48], tokens=9).hidden_states[-2][:, 1:]
    torch.testing.assert_close(out[:1], expected)


def test_a_v1_encoder_has_a_fixed_number_of_tokens() -> None:
    with pytest.raises(UserError, match="is a SparseFormer v1, whose 49 tokens have an embedding each"):
        SparseFormerTower("sparseformer-v1-t?tokens=25&weights=random", arguments(), delay_load=True)
    own = SparseFormerTower("sparseformer-v1-t?tokens=49&weights=random", arguments(), delay_load=True)
    assert own.num_patches == 49


def test_tokens_that_leave_no_room_for_text_are_refused_on_reload(tower: str) -> None:
    short = reload_config(max_position_embeddings=64)
    with pytest.raises(UserError, match=r"has 64 visual tokens from .*, but the language model takes 64"):
        SparseFormerTower(f"{tower}?tokens=64", short, delay_load=True)
    assert SparseFormerTower(f"{tower}?tokens=63", short, delay_load=True).num_patches == 63
    shorter = reload_config(max_position_embeddings=64, tokenizer_model_max_length=32)  # LLaVA truncates to it
    with pytest.raises(UserError, match="language model takes 32 tokens"):
        SparseFormerTower(f"{tower}?tokens=63", shorter, delay_load=True)


def checkpoint(directory: Path, encoder: SparseFormer) -> Path:
    """The tower's part of a checkpoint that LLaVA saves after full fine-tuning, next to other weights."""
    weights = {f"model.vision_tower.vision_tower.{key}": value for key, value in encoder.state_dict().items()}
    directory.mkdir()
    save_file({**weights, "lm_head.weight": torch.zeros(2, 2)}, directory / "model.safetensors")
    return directory


@pytest.fixture
def tuned(tiny_config: SparseFormerConfig) -> SparseFormer:
    """An encoder whose weights differ from those in the encoder directory."""
    torch.manual_seed(1)
    return SparseFormer(tiny_config).eval()


def test_tuned_weights_take_precedence_on_reload(
    tower: str, tuned: SparseFormer, tmp_path: Path, images: Tensor
) -> None:
    late = SparseFormerTower(tower, reload_config(checkpoint(tmp_path / "llava", tuned)), delay_load=True)
    late.load_model()
    assert torch.equal(late(images), tuned(images).hidden_states[-2][:, 1:])


def test_a_full_checkpoint_is_self_contained(tuned: SparseFormer, tmp_path: Path) -> None:
    config = reload_config(checkpoint(tmp_path / "llava", tuned), **{RECORD: tuned.config.to_dict()})
    late = SparseFormerTower("sparseformer:/gone", config, delay_load=True)
    late.load_model()
    assert torch.equal(late.vision_tower.stem.conv.weight, tuned.stem.conv.weight)


def test_tuned_weights_come_with_a_state_dict(tower: str, tuned: SparseFormer, images: Tensor) -> None:
    """LLaVA's LoRA reload loads only the trained weights, before load_model."""
    late = SparseFormerTower(tower, reload_config(), delay_load=True)
    trained = {f"vision_tower.focus.{key}": value for key, value in tuned.focus.state_dict().items()}
    late.load_state_dict(trained, strict=False)
    late.load_model()
    assert late.is_loaded
    assert torch.equal(late.vision_tower.focus.transition[0].weight, tuned.focus.transition[0].weight)
    assert not torch.equal(late.vision_tower.stem.conv.weight, tuned.stem.conv.weight)


def test_no_layer_has_a_name_that_lora_targets(loaded: SparseFormerTower) -> None:
    leaves = {name.rpartition(".")[2] for name, _ in loaded.named_modules()}
    assert leaves.isdisjoint({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mm_vision_select_layer": -4}, "2 inherited blocks"),
        ({"mm_vision_select_layer": 3}, "2 inherited blocks"),
        ({"mm_vision_select_feature": "cls"}, "Did you mean 'cls_patch'"),
        ({"mm_patch_merge_type": "spatial_unpad"}, "have no grid.*Use --mm_patch_merge_type flat"),
        ({"mm_resampler_type": "spatial_pool"}, "mm_resampler_type is 'spatial_pool': .* have no grid.*Leave it out"),
        ({"mm_projector_type": "pooler"}, "mm_projector_type is 'pooler': .* have no grid.*mlp2x_gelu"),
        ({"add_faster_video": True}, "add_faster_video is True: .* have no grid.*every frame of a video keeps"),
    ],
)
def test_unsupported_arguments_are_refused(tower: str, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        SparseFormerTower(tower, SimpleNamespace(**{"mm_vision_select_layer": -2, **changes}))


def test_the_same_options_without_a_grid_are_accepted(tower: str) -> None:
    options = {"mm_patch_merge_type": "flat", "mm_resampler_type": None, "mm_projector_type": "mlp2x_gelu"}
    assert SparseFormerTower(tower, arguments(add_faster_video=False, **options)).is_loaded


def test_num_patches_per_side_is_refused_without_advice_that_may_be_followed_already(loaded: SparseFormerTower) -> None:
    with pytest.raises(UserError, match="have no grid") as caught:
        _ = loaded.num_patches_per_side
    assert "flat" not in str(caught.value)


def test_another_width_than_the_checkpoints_is_refused(tower: str) -> None:
    config = LlamaConfig(mm_vision_select_layer=-2, mm_hidden_size=1024)
    with pytest.raises(UserError, match="1024 channels"):
        SparseFormerTower(tower, config, delay_load=True)


def test_another_token_count_than_the_checkpoints_is_refused(tower: str, tiny_config: SparseFormerConfig) -> None:
    recorded = tiny_config.to_dict()
    recorded["focus"]["tokens"] = 9
    late = SparseFormerTower(tower, reload_config(**{RECORD: recorded}), delay_load=True)
    with pytest.raises(UserError, match=r"focus\.tokens was 9, is 6"):
        late.load_model()


@torch.inference_mode()
def test_a_replayed_encoder_gives_the_same_tokens(loaded: SparseFormerTower, images: Tensor) -> None:
    """CUDA graphs as in docs/gpu.md, with a stand-in that captures on the CPU."""
    expected = loaded(images)
    recorder = CpuRecorder()
    replay_from_graphs(loaded.vision_tower, recorder)
    assert all(torch.equal(loaded(images), expected) for _ in range(3))
    assert recorder.replays == 2
