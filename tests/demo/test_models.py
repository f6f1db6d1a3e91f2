"""Opened models, their answers, views and numbers, without a page."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)

from demo.answers import answer
from demo.generation import Generation
from demo.models import OpenModel, open_model
from demo.panel import (
    ALL,
    Choice,
    count_tokens,
    describe_attention,
    describe_rois,
    draw_attention,
    draw_rois,
    numbers,
    token_at,
)
from demo.session import SentImage, Session
from sparse_vlm.draw import SIDE
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.chat import answer as one_answer
from sparse_vlm.vlm.decoding import Decoding

CPU = torch.device("cpu")
GREEDY = Decoding()


def sent(image: Image.Image, name: str) -> SentImage:
    data = io.BytesIO()
    image.save(data, "png")
    return SentImage(data.getvalue(), name, name)


def opened(directory: Path) -> OpenModel:
    return open_model(directory, CPU, torch.float32, None)


@pytest.fixture(scope="module")
def sparse(vlm_dir: Path) -> OpenModel:
    return opened(vlm_dir)


@pytest.fixture(scope="module")
def llava_dir(tmp_path_factory: pytest.TempPathFactory, short_tokenizer: PreTrainedTokenizerBase) -> Path:
    """A tiny random Llava with transformers' own classes, as on the hub."""
    directory = tmp_path_factory.mktemp("hf-llava")
    tokenizer: Any = short_tokenizer.from_pretrained(save(short_tokenizer, directory))
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 48}
    vision = CLIPVisionConfig(image_size=32, patch_size=8, **heads)
    text = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, max_position_embeddings=128, **heads)
    torch.manual_seed(0)
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=image_token, image_seq_length=16)
    ).save_pretrained(directory)
    image_processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    template = (
        "{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}"
        "{{ '<image>' if c['type'] == 'image' else c['text'] }}{% endfor %}\n{% endfor %}assistant:"
    )
    LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    ).save_pretrained(directory)
    return directory


def save(tokenizer: PreTrainedTokenizerBase, directory: Path) -> Path:
    tokenizer.save_pretrained(directory)
    return directory


def ask(
    models: list[OpenModel], session: Session, decoding: Decoding = GREEDY, max_new_tokens: int = 6
) -> list[Generation]:
    return list(answer(models, session, decoding, max_new_tokens))[-1]


@pytest.mark.slow
def test_two_turns_with_images(sparse: OpenModel, vlm: tuple[Any, Any], images: list[Image.Image]) -> None:
    session = Session()
    session.begin("What is it?", [sent(images[0], "a.png")])
    ask([sparse], session)
    assert session.turns[0].answers == [one_answer(*vlm, images[0], "What is it?", 6)]
    session.begin("And these?", [sent(images[1], "b.png"), sent(images[2], "c.png")])
    (generation,) = ask([sparse], session)
    assert (generation.inputs["input_ids"] == sparse.processor.image_token_id).sum() == 3 * 6
    seen = session.seen[0]
    assert seen is not None
    assert [image.pixels.shape for image in seen.images] == [(64, 64, 3)] * 3
    assert [image.attention.shape for image in seen.images] == [(len(generation.ids), 6)] * 3
    assert [part["role"] for part in session.history(0)] == ["user", "assistant"] * 2
    assert session.turns[0].answers[0] in str(sparse.processor.tokenizer.decode(generation.inputs["input_ids"][0]))
    session.clear()
    assert session.history(0) == []


@pytest.mark.slow
def test_attention_is_that_of_the_model(sparse: OpenModel, images: list[Image.Image]) -> None:
    """A single pass over prompt and answer with eager attention gives the same numbers."""
    session = Session()
    session.begin("What is it?", [sent(images[0], "a.png")])
    (generation,) = ask([sparse], session, max_new_tokens=20)  # more than one chunk
    seen = session.seen[0]
    assert seen is not None
    prompt = generation.inputs["input_ids"]
    ids = torch.cat([prompt, torch.tensor([generation.ids[:-1]])], dim=1)
    sparse.model.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            out = sparse.model(
                input_ids=ids, pixel_values=generation.inputs["pixel_values"], output_attentions=True, use_cache=False
            )
    finally:
        sparse.model.set_attn_implementation("sdpa")
    visual = (prompt[0] == sparse.processor.image_token_id).nonzero().flatten()
    expected = torch.stack(out.attentions).mean(dim=(0, 1, 2))[prompt.shape[1] - 1 :, visual]
    torch.testing.assert_close(seen.images[0].attention, expected, atol=1e-5, rtol=1e-4)
    assert 0 < float(expected.sum(dim=1).max()) < 1


@pytest.mark.slow
def test_the_panel_of_both_kinds_of_tower(sparse: OpenModel, dense_vlm_dir: Path, images: list[Image.Image]) -> None:
    models = [sparse, opened(dense_vlm_dir)]
    session = Session()
    session.begin("What is it?", [sent(images[0], "a.png")])
    generations = ask(models, session)
    assert all(each.tower_seconds and 0 < each.tower_seconds < each.first_seconds for each in generations)
    sparse_seen, dense_seen = session.seen
    assert sparse_seen is not None
    assert dense_seen is not None
    assert len(sparse_seen.images[0].steps) == 3
    assert len(dense_seen.images[0].steps) == 1
    choice = Choice(1, 1, ALL, "token", True, ALL)
    assert describe_rois(dense_seen, choice) == "Step 1 of 1: 16 tokens cover 100% of the image."
    assert "token 2 alone 6%" in describe_rois(dense_seen, choice._replace(token=2))
    assert token_at(dense_seen, choice, SIDE * 0.55 / 1.5, SIDE * 0.35 / 1.5) == 2  # rows of four
    assert "of its attention" in describe_attention(sparse_seen, choice._replace(answer_token=1))
    for seen in (sparse_seen, dense_seen):
        assert draw_rois(seen, choice).size == draw_attention(seen, choice).size
    table = numbers(models, generations, [count_tokens(seen) for seen in session.seen])
    assert "| visual tokens of an image | 6 | 16 |" in table
    assert table.count("ms") == 6


@pytest.mark.slow
def test_a_model_of_transformers_itself(llava_dir: Path, images: list[Image.Image]) -> None:
    model = opened(llava_dir)
    session = Session()
    session.begin("What is it?", [sent(images[0], "a.png")])
    (generation,) = ask([model], session)
    assert len(generation.ids) > 0
    seen = session.seen[0]
    assert seen is not None
    assert [image.attention.shape[1] for image in seen.images] == [16]
    session.begin("x " * 200, [])
    with pytest.raises(UserError, match=r"more than the 128 that .*hf-llava.* takes"):
        ask([model], session)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("directory", ["vlm_dir", "llava_dir"])
@pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning")  # int8 computes in float16 beside a float32 model
def test_only_the_language_model_is_quantized(
    bits: int, directory: str, request: pytest.FixtureRequest, images: list[Image.Image]
) -> None:
    path = request.getfixturevalue(directory)
    model = open_model(path, CPU, torch.float32, bits)
    packed = [n for n, module in model.model.named_modules() if isinstance(module, Linear4bit | Linear8bitLt)]
    assert len(packed) == 2 * 7
    assert all(".language_model.layers." in name for name in packed)
    assert model.weight_bytes < opened(path).weight_bytes
    session = Session()
    session.begin("What is it?", [sent(images[0], "a.png")])
    (generation,) = ask([model], session)
    assert len(generation.ids) > 0


def test_sampling(sparse: OpenModel) -> None:
    answers = set()
    for seed in range(3):
        torch.manual_seed(seed)
        session = Session()
        session.begin("What is it?", [])
        (generation,) = ask([sparse], session, Decoding(1.5, 0.9))
        answers.add(tuple(generation.ids))
    assert len(answers) > 1
    assert session.seen == [None]  # without an image there is nothing to show


def test_a_model_that_cannot_be_opened_is_named(vlm_dir: Path, encoder_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no model directory"):
        opened(tmp_path / "none")
    with pytest.raises(UserError, match=r"it has no config.json"):
        opened(tmp_path)
    with pytest.raises(UserError, match="cannot be opened"):
        opened(encoder_dir)
    with pytest.raises(UserError, match="--bits must be 4 or 8, got 3"):
        open_model(vlm_dir, CPU, torch.float32, 3)


def test_empty_questions_are_refused() -> None:
    session = Session()
    with pytest.raises(UserError, match="empty"):
        session.begin(" ", [])
    with pytest.raises(UserError, match="ask first"):
        session.check_retry()
    assert session.turns == []
