"""The model: batches, padding, shared prefixes, gradients, dtypes."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import BatchFeature

from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.float32 import Float32Module
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.chat import GREEDY, encode_prompt
from sparse_vlm.vlm.configuration import SparseVLMConfig
from sparse_vlm.vlm.language.prefixes import CACHE
from sparse_vlm.vlm.language.projector import build_projector
from sparse_vlm.vlm.loading import load_vlm
from sparse_vlm.vlm.vision import SparseFormerVisionConfig
from tests.vlm.conftest import Loaded

QUESTIONS = ["What is it?", "Which colour has the thing that lies on the left of the big red cube?", "Is it red?"]


def prompts(processor: Any, questions: list[str], images: list[Image.Image] | None) -> BatchFeature:
    parts = [{"type": "image"}] * (images is not None)
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}],
            add_generation_prompt=True,
            tokenize=False,
        )
        for question in questions
    ]
    return processor(text=texts, images=images, padding=True, add_special_tokens=False, return_tensors="pt")


def answer_ids(loaded: Loaded, image: Image.Image | None, question: str) -> list[int]:
    model, processor = loaded
    inputs = encode_prompt(processor, image, question)
    ids = model.generate(**inputs, max_new_tokens=8, min_new_tokens=8, **GREEDY)
    return ids[0, inputs["input_ids"].shape[1] :].tolist()


def test_generated_text_depends_on_the_image(vlm: Loaded, images: list[Image.Image]) -> None:
    model, processor = vlm
    logits = [model(**encode_prompt(processor, image, "What?")).logits[0, -1] for image in images[:2]]
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_batches_with_left_padding_give_the_single_answers(vlm: Loaded, images: list[Image.Image]) -> None:
    model, processor = vlm
    inputs = prompts(processor, QUESTIONS, images)
    assert (inputs["attention_mask"] == 0).any(), "the questions must differ in length"
    ids = model.generate(**inputs, max_new_tokens=8, min_new_tokens=8, **GREEDY)
    one_by_one = [answer_ids(vlm, image, question) for image, question in zip(images, QUESTIONS, strict=True)]
    assert ids[:, inputs["input_ids"].shape[1] :].tolist() == one_by_one


def test_text_only_batches_give_the_single_answers(vlm: Loaded) -> None:
    model, processor = vlm
    inputs = prompts(processor, QUESTIONS, None)
    assert "pixel_values" not in inputs
    ids = model.generate(**inputs, max_new_tokens=8, min_new_tokens=8, **GREEDY)
    one_by_one = [answer_ids(vlm, None, question) for question in QUESTIONS]
    assert ids[:, inputs["input_ids"].shape[1] :].tolist() == one_by_one


def test_questions_can_share_the_cached_prefix_of_one_image(vlm: Loaded, images: list[Image.Image]) -> None:
    """Rows are [prefix | padding | question]. The prefix with the image is computed once, before the rows."""
    model, processor = vlm
    rows = [encode_prompt(processor, images[0], question) for question in QUESTIONS]
    ids = [row["input_ids"][0] for row in rows]
    end = int((ids[0] == model.config.image_token_id).nonzero()[-1]) + 1
    prefix = ids[0][:end]
    assert all(torch.equal(row[:end], prefix) for row in ids)

    longest = max(len(row) for row in ids)
    padding = [torch.full((longest - len(row),), processor.tokenizer.pad_token_id) for row in ids]
    input_ids = torch.stack([torch.cat([prefix, pad, row[end:]]) for row, pad in zip(ids, padding, strict=True)])
    attention_mask = torch.ones_like(input_ids)
    for row, pad in enumerate(padding):
        attention_mask[row, end : end + len(pad)] = 0

    with torch.no_grad():
        out = model(input_ids=prefix[None], pixel_values=rows[0]["pixel_values"], use_cache=True)
    cache = copy.deepcopy(out[CACHE])
    cache.batch_repeat_interleave(len(QUESTIONS))
    generated = model.generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        max_new_tokens=8,
        min_new_tokens=8,
        **GREEDY,
        **{CACHE: cache},
    )
    assert generated[:, longest:].tolist() == [answer_ids(vlm, images[0], question) for question in QUESTIONS]
    assert out[CACHE].get_seq_length() == end, "the cache of the prefix can be used again"


@torch.no_grad()
def test_larger_and_oblong_images_take_the_same_number_of_tokens(vlm: Loaded, images: list[Image.Image]) -> None:
    model, processor = vlm
    larger = {"size": {"shortest_edge": 96}, "crop_size": {"height": 96, "width": 96}}
    small, large = (
        processor(text="<image>\nWhat?", images=images[0], return_tensors="pt", **sizes) for sizes in ({}, larger)
    )
    assert (small["pixel_values"].shape[-2:], large["pixel_values"].shape[-2:]) == ((64, 64), (96, 96))
    assert torch.equal(small["input_ids"], large["input_ids"])
    oblong = torch.rand(1, 3, 48, 120)
    tokens = [model.model.encode_images(pixels) for pixels in (large["pixel_values"], oblong)]
    assert [[each.shape for each in found] for found in tokens] == [[(6, 128)], [(6, 128)]]
    assert model(**(large | {"pixel_values": oblong})).logits.isfinite().all()


def test_wrong_number_of_placeholder_tokens_in_the_ids(vlm: Loaded, images: list[Image.Image]) -> None:
    model, processor = vlm
    inputs = encode_prompt(processor, images[0], "What?")
    inputs["input_ids"][inputs["input_ids"] == model.config.image_token_id] = 5
    inputs["input_ids"][0, :3] = model.config.image_token_id
    with pytest.raises(ValueError, match="do not match, tokens: 3"):
        model(**inputs)


def test_loss_reaches_projector_encoder_and_llm(vlm_dir: Path, images: list[Image.Image]) -> None:
    loaded: Loaded = load_vlm(vlm_dir)
    model, processor = loaded
    inputs = encode_prompt(processor, images[0], "What?")
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    encoder = model.model.vision_tower.encoder
    for parameters in (
        model.model.multi_modal_projector.parameters(),
        encoder.stem.conv.parameters(),
        encoder.focus.initial_rois.parameters(),
        encoder.cortex.trunk.blocks[0].parameters(),
        model.model.language_model.parameters(),
    ):
        for parameter in parameters:
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all()
            assert parameter.grad.abs().max() > 0
    # blocks after the selected hidden state have no gradients
    assert all(parameter.grad is None for parameter in encoder.cortex.trunk.blocks[-1].parameters())


def test_bfloat16_keeps_the_coordinates_bit_for_bit(vlm_dir: Path, images: list[Image.Image]) -> None:
    exact, processor = load_vlm(vlm_dir)
    model, _ = load_vlm(vlm_dir, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    pairs = zip(exact.named_modules(), model.named_modules(), strict=True)
    islands = [(a, b) for (_, a), (_, b) in pairs if isinstance(a, Float32Module)]
    assert islands
    for a, b in islands:
        for expected, got in zip(a.parameters(), b.parameters(), strict=True):
            assert got.dtype == torch.float32
            assert torch.equal(expected, got)
    inputs = encode_prompt(processor, images[0], "What?")
    out = model(**inputs)
    assert out.logits.dtype == torch.bfloat16
    assert out.logits.isfinite().all()


def test_attention_is_sdpa(vlm: Loaded) -> None:
    config = vlm[0].config
    assert config.text_config._attn_implementation == "sdpa"


def test_unknown_projector(tiny_encoder: SparseFormer) -> None:
    vision = SparseFormerVisionConfig.from_encoder(tiny_encoder)
    with pytest.raises(UserError, match=r"Unknown projector 'mlp3x_gelu'. Did you mean 'mlp2x_gelu'"):
        SparseVLMConfig(vision_config=vision, projector_type="mlp3x_gelu")


def test_several_feature_layers_are_concatenated(tiny_encoder: SparseFormer) -> None:
    vision = SparseFormerVisionConfig.from_encoder(tiny_encoder)
    config = SparseVLMConfig(vision_config=vision, vision_feature_layer=[-2, -1])
    assert build_projector(config)[0].normalized_shape == (256,)
