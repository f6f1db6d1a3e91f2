"""SparseFormer as a vision model of transformers, and the visual tokens that a VLM receives."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoModelForImageTextToText, LlamaConfig

from sparse_vlm.encoder import CortexConfig, FocusConfig, Preprocessing, SparseFormer, SparseFormerConfig, StemConfig
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.answering import Answerer
from sparse_vlm.vlm.build import build_vlm
from sparse_vlm.vlm.chat import answer, encode_prompt, stream
from sparse_vlm.vlm.conversation import Conversation
from sparse_vlm.vlm.loading import load_vlm
from sparse_vlm.vlm.modeling import SparseVLMConfig, SparseVLMModel
from sparse_vlm.vlm.vision import SparseFormerVisionConfig, SparseFormerVisionModel
from tests.vlm.conftest import Loaded


def test_visual_tokens_are_the_hidden_state_that_enters_the_last_block(
    vlm: Loaded, images: list[Image.Image], encoder_dir: Path
) -> None:
    model, processor = vlm
    pixel_values = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        got = torch.stack(model.model.get_image_features(pixel_values).pooler_output)
        states = SparseFormer.from_pretrained(encoder_dir)(pixel_values).hidden_states
        expected = model.model.multi_modal_projector(states[-2][:, 1:])
    assert got.shape == (3, 6, 48)
    torch.testing.assert_close(got, expected)
    assert not torch.allclose(got[0], got[1])


def test_the_vision_model_alone_opens_with_automodel(tiny_encoder: SparseFormer) -> None:
    config = SparseFormerVisionConfig.from_encoder(tiny_encoder)
    torch.manual_seed(0)
    model = AutoModel.from_config(config)
    pixel_values = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model.encoder.state_dict(), tiny_encoder.state_dict())  # its own initialization
    with torch.no_grad():
        out = model.eval()(pixel_values)
        expected = tiny_encoder(pixel_values)
    torch.testing.assert_close(out.pooler_output, expected.pooled)
    torch.testing.assert_close(out.last_hidden_state, expected.tokens)
    assert len(out.hidden_states) == 3

    model.encoder.cortex.trunk.blocks[-1].register_forward_pre_hook(lambda *_: pytest.fail("it is not needed"))
    chosen = model(pixel_values, output_hidden_states=[-2, 0])
    assert [state is None for state in chosen.hidden_states] == [False, False, True]
    assert chosen.pooler_output is chosen.last_hidden_state is None
    torch.testing.assert_close(chosen.hidden_states[:2], out.hidden_states[:2])


@pytest.fixture(scope="session")
def encoder_without_cls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SparseFormer v1: 5 latent tokens, no CLS."""
    config = SparseFormerConfig(
        StemConfig(8),
        FocusConfig("v1", tokens=5, width=64, heads=1, repeats=1, last_heads=2),
        CortexConfig(
            "vit_tiny_patch16_224",
            depth=2,
            width=128,
            heads=2,
            head_dim=10,
            options={"class_token": False, "global_pool": "avg", "fc_norm": True},
        ),
        Preprocessing(resize=64, crop=64),
    )
    directory = tmp_path_factory.mktemp("v1") / "encoder"
    torch.manual_seed(0)
    SparseFormer(config).save_pretrained(directory)
    return directory


@pytest.mark.parametrize(("strategy", "tokens"), [("default", 5), ("full", 6)])
def test_registers_are_not_visual_tokens(strategy: str, tokens: int) -> None:
    """The strategy "default" selects the latent tokens, "full" CLS as well."""
    cortex = CortexConfig("vit_small_patch14_reg4_dinov2", depth=2, width=128, heads=2)
    focus = FocusConfig("bootstrapped", tokens=5, width=64, heads=1, repeats=1)
    encoder = SparseFormer(SparseFormerConfig(StemConfig(8), focus, cortex, Preprocessing(64, 64))).eval()
    vision = SparseFormerVisionModel.from_encoder(encoder)
    text = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1
    )
    config = SparseVLMConfig(vision_config=vision.config, text_config=text, vision_feature_select_strategy=strategy)
    assert config.image_seq_length == tokens
    model = SparseVLMModel(config).eval()
    model.vision_tower = vision
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = torch.stack(model.get_image_features(images).pooler_output)
        states = encoder(images).hidden_states[-2]
        kept = torch.cat([states[:, : tokens - 5], states[:, 5:]], dim=1)
        torch.testing.assert_close(features, model.multi_modal_projector(kept))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("with_cls", "strategy", "tokens"), [(True, "full", 7), (False, "default", 5), (False, "full", 5)]
)
def test_visual_tokens_by_select_strategy(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    llm_dir: Path,
    images: list[Image.Image],
    with_cls: bool,
    strategy: str,
    tokens: int,
) -> None:
    encoder_dir = request.getfixturevalue("encoder_dir" if with_cls else "encoder_without_cls")
    build_vlm(encoder_dir, llm_dir, tmp_path / "vlm", vision_feature_select_strategy=strategy, projector="linear")
    model, processor = load_vlm(tmp_path / "vlm")
    assert model.config.image_seq_length == processor.num_image_tokens == tokens
    inputs = encode_prompt(processor, images[0], "What?")
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == tokens
    with torch.no_grad():
        features = model.model.get_image_features(inputs["pixel_values"]).pooler_output[0]
        states = SparseFormer.from_pretrained(encoder_dir)(inputs["pixel_values"]).hidden_states
        torch.testing.assert_close(features, model.model.multi_modal_projector(states[-2][0]))
        assert model(**inputs).logits.isfinite().all()


def test_the_number_of_tokens_of_a_v1_is_fixed(
    encoder_without_cls: Path, llm_dir: Path, images: list[Image.Image], tmp_path: Path
) -> None:
    build_vlm(encoder_without_cls, llm_dir, tmp_path / "vlm")
    model, processor = load_vlm(tmp_path / "vlm")
    assert answer(model, processor, images[0], "What?", 4) == answer(
        model, processor, images[0], "What?", 4, visual_tokens=5
    )
    conversation = Conversation(model, processor)
    conversation.show(images[0])
    for refused in (
        lambda: answer(model, processor, images[0], "What?", visual_tokens=4),
        lambda: answer(model, processor, images[0], "What?", regions=[(0.0, 0.0, 1.0, 1.0)]),
        lambda: Answerer(model, processor, 4, visual_tokens=4),
        lambda: Conversation(model, processor, visual_tokens=4),
        lambda: conversation.look_at((0.0, 0.0, 1.0, 1.0)),
        lambda: next(stream(model, processor, images[0], "What?", visual_tokens=4)),
    ):
        with pytest.raises(UserError, match="This encoder is a SparseFormer v1"):
            refused()
    # servers have the processor alone before the model runs
    with pytest.raises(UserError, match="This encoder is a SparseFormer v1"):
        processor(images=images[0], visual_tokens=4)


def test_a_model_that_keeps_cls_counts_it(
    encoder_dir: Path, llm_dir: Path, images: list[Image.Image], tmp_path: Path
) -> None:
    build_vlm(encoder_dir, llm_dir, tmp_path / "vlm", vision_feature_select_strategy="full")
    model, processor = load_vlm(tmp_path / "vlm")
    with pytest.raises(UserError, match="keeps CLS, so an image needs at least 2 visual tokens, got 1"):
        Answerer(model, processor, 4, visual_tokens=1)
    with pytest.raises(UserError, match="keeps CLS, so an image needs at least 2 visual tokens, got 1"):
        processor(images=images[0], visual_tokens=1)
    (batch,) = Answerer(model, processor, 4, visual_tokens=2).answer(images[:1], [(0, "What?")])
    assert batch == [(0, answer(model, processor, images[0], "What?", 4, visual_tokens=2))]


def test_default_strategy_without_cls_is_refused(encoder_without_cls: Path) -> None:
    vision = SparseFormerVisionConfig.from_encoder(SparseFormer.from_pretrained(encoder_without_cls))
    with pytest.raises(UserError, match='has none: use "full"'):
        SparseVLMConfig(vision_config=vision, vision_feature_select_strategy="default")


@torch.inference_mode()
def test_a_tower_offloaded_to_disk_computes_the_same(
    vlm: Loaded, vlm_dir: Path, images: list[Image.Image], tmp_path: Path
) -> None:
    model, processor = vlm
    inputs = encode_prompt(processor, images[0], "What?")
    places = {"model.vision_tower": "disk"} | dict.fromkeys(
        ("model.multi_modal_projector", "model.language_model", "lm_head"), "cpu"
    )
    offloaded = AutoModelForImageTextToText.from_pretrained(vlm_dir, device_map=places, offload_folder=tmp_path)
    assert offloaded.model.vision_tower.encoder.focus.initial_rois.weight.is_meta
    torch.testing.assert_close(offloaded(**inputs).logits, model(**inputs).logits)
