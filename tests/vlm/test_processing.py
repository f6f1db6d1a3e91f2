from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from sparse_vlm.encoder import Preprocessing, SparseFormer
from sparse_vlm.encoder.preprocessing import Transform
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.processing import (
    IMAGE_TOKEN,
    SparseFormerImageProcessor,
    SparseVLMProcessor,
    add_image_token,
)
from sparse_vlm.vlm.templates import prepare_chat_template
from tests.vlm.conftest import Loaded

QUESTION: list[dict[str, Any]] = [{"type": "image"}, {"type": "text", "text": "What?"}]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK"])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (64, 64), (341, 257), (90, 343)])
def test_pixel_values_equal_the_encoders_transform(
    vlm: Loaded, encoder_dir: Path, mode: str, size: tuple[int, int]
) -> None:
    noise = torch.randint(0, 256, (size[1], size[0], 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    image = Image.fromarray(noise.numpy()).convert(mode)
    got = vlm[1].image_processor(image, return_tensors="pt")["pixel_values"]
    expected = SparseFormer.from_pretrained(encoder_dir).transform(image)
    assert torch.equal(got, expected[None])


@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
def test_every_field_of_the_preprocessing_arrives(resize_mode: str) -> None:
    preprocessing = Preprocessing(40, 32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear", resize_mode)
    image = Image.effect_noise((50, 71), 80).convert("RGB")
    got = SparseFormerImageProcessor.from_preprocessing(preprocessing)(image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(got, Transform(preprocessing)(image))


def test_arrays_and_tensors_equal_the_picture(vlm: Loaded) -> None:
    array = torch.randint(0, 256, (30, 40, 3), dtype=torch.uint8)
    processor = vlm[1].image_processor
    values = [processor(x, return_tensors="pt")["pixel_values"] for x in (array.numpy(), array.permute(2, 0, 1))]
    expected = processor(Image.fromarray(array.numpy()), return_tensors="pt")["pixel_values"]
    assert torch.equal(values[0], expected)
    assert torch.equal(values[1], expected)


@pytest.mark.parametrize("size", [(1, 1), (4000, 3000)])
def test_extreme_sizes_give_the_same_number_of_tokens(vlm: Loaded, size: tuple[int, int]) -> None:
    inputs = vlm[1](text="<image>\nWhat?", images=Image.new("RGB", size, "red"), return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 64, 64)
    assert int((inputs["input_ids"] == vlm[1].image_token_id).sum()) == 6


def test_steps_cannot_be_switched_off(vlm: Loaded) -> None:
    with pytest.raises(UserError, match="no do_"):
        vlm[1].image_processor(Image.new("RGB", (4, 4)), do_resize=False)


@pytest.mark.parametrize(
    ("text", "images", "message"),
    [
        ("What?", 1, "Found total 0 <image> tokens and 1 images"),
        ("<image> <image> What?", 1, "Found total 2 <image> tokens and 1 images"),
        ("<image> What?", 0, "Found 1 <image> tokens in the text but no images"),
    ],
)
def test_wrong_number_of_placeholders(vlm: Loaded, text: str, images: int, message: str) -> None:
    pictures = [Image.new("RGB", (4, 4))] * images or None
    with pytest.raises(ValueError, match=message):
        vlm[1](text=text, images=pictures)


def test_the_placeholder_is_added_once(smollm2_tokenizer: PreTrainedTokenizerBase, vlm: Loaded) -> None:
    tokenizer = vlm[1].tokenizer
    before = len(tokenizer)
    assert before == len(smollm2_tokenizer) + 1
    assert add_image_token(tokenizer) == vlm[1].image_token_id == before - 1
    assert len(tokenizer) == before
    assert tokenizer(f"a{IMAGE_TOKEN}{IMAGE_TOKEN}b")["input_ids"].count(before - 1) == 2


def test_parts_and_text_render_alike_and_as_the_llm_was_trained(
    vlm: Loaded, smollm2_tokenizer: PreTrainedTokenizerBase
) -> None:
    processor = vlm[1]
    messages = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": [{"type": "text", "text": "A cube."}]},
        {"role": "user", "content": "Its colour?"},
    ]
    plain = [
        {"role": "user", "content": "<image>\nWhat?"},
        {"role": "assistant", "content": "A cube."},
        {"role": "user", "content": "Its colour?"},
    ]
    expected = smollm2_tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == expected
    assert processor.apply_chat_template(plain, add_generation_prompt=True) == expected
    assert processor.tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True) == expected


def test_apply_chat_template_can_do_it_all(vlm: Loaded) -> None:
    image = Image.new("RGB", (30, 20), "red")
    messages = [{"role": "user", "content": [{"type": "image", "image": image}, QUESTION[1]]}]
    inputs = vlm[1].apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    text = vlm[1].apply_chat_template(messages, add_generation_prompt=True)
    expected = vlm[1](text=text, images=image, add_special_tokens=False, return_tensors="pt")
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    assert torch.equal(inputs["pixel_values"], expected["pixel_values"])


IN_ORDER = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ '<image>\\n' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}{% endif %}{% endfor %}"
)


def test_a_template_that_places_images_itself_stays(smollm2_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    template = IN_ORDER.replace("message['content'] %}{{", "message['content'] | sort(attribute='type') %}{{")
    assert prepare_chat_template(smollm2_tokenizer, template) == template
    (tmp_path / "chat.jinja").write_text(template)
    assert prepare_chat_template(smollm2_tokenizer, tmp_path / "chat.jinja") == template


IMAGE, WORDS = QUESTION


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([WORDS, IMAGE], "<image>\nWhat?"),
        ([WORDS, IMAGE, IMAGE], "<image>\n<image>\nWhat?"),
        ([WORDS, IMAGE, {"type": "text", "text": " Really?"}], "<image>\nWhat? Really?"),
        ([IMAGE, WORDS, IMAGE, WORDS], "<image>\nWhat?<image>\nWhat?"),
    ],
)
def test_a_turns_images_stand_where_training_puts_them(
    smollm2_tokenizer: PreTrainedTokenizerBase, content: list[dict[str, Any]], expected: str
) -> None:
    """In the template itself, the LLM's own or one that would place images as they come; words between images stay."""
    messages: Any = [{"role": "user", "content": content}]
    for given in (None, IN_ORDER):
        template = prepare_chat_template(smollm2_tokenizer, given)
        text: Any = smollm2_tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
        assert expected in text
        assert text.count("<image>") == expected.count("<image>")


def test_a_template_that_prints_lists_as_python_does_is_extended(smollm2_tokenizer: PreTrainedTokenizerBase) -> None:
    template = "{% for message in messages %}USER: {{ message['content'] }} {% endfor %}ASSISTANT:"
    prepared = prepare_chat_template(smollm2_tokenizer, template)
    messages: Any = [{"role": "user", "content": QUESTION}]
    text = smollm2_tokenizer.apply_chat_template(messages, chat_template=prepared, tokenize=False)
    assert text == "USER: <image>\nWhat? ASSISTANT:"


def test_bad_templates(smollm2_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no chat template file .*nothing.jinja"):
        prepare_chat_template(smollm2_tokenizer, tmp_path / "nothing.jinja")
    with pytest.raises(UserError, match="cannot place an image"):
        prepare_chat_template(smollm2_tokenizer, "{{ 'hello' }}")
    with pytest.raises(UserError, match="cannot place an image"):
        prepare_chat_template(smollm2_tokenizer, "{% for message in %}")
    own = smollm2_tokenizer.chat_template
    smollm2_tokenizer.chat_template = None
    try:
        with pytest.raises(UserError, match="has no chat template: give one"):
            prepare_chat_template(smollm2_tokenizer)
    finally:
        smollm2_tokenizer.chat_template = own


def test_round_trip(vlm: Loaded, tmp_path: Path) -> None:
    processor = vlm[1]
    processor.save_pretrained(tmp_path)
    again = SparseVLMProcessor.from_pretrained(tmp_path)
    assert again.num_image_tokens == 6
    assert again.chat_template == processor.chat_template
    assert again.tokenizer.padding_side == "left"
    assert again.image_processor.to_dict() == processor.image_processor.to_dict()
