"""Chat templates: LLaVA's formats, compared with LLaVA's own conversation.py, and templates of language models.

conversation.py is read from the installed package without importing LLaVA.
"""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from sparse_vlm.errors import UserError
from sparse_vlm.vlm.language.templates import CHAT_TEMPLATES, LLAVA_PLAIN, prepare_chat_template

TURNS = ["<image>\nWhat is it?", "A red circle.", "Sure?", "Yes"]


@pytest.fixture(scope="module")
def conversations() -> dict[str, Any]:
    package = importlib.util.find_spec("llava")
    if package is None or package.origin is None:
        pytest.skip("LLaVA (llava-torch) is not installed")
    spec = importlib.util.spec_from_file_location("conversation", Path(package.origin).parent / "conversation.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.conv_templates


def render(tokenizer: PreTrainedTokenizerBase, template: str, turns: list[str], *, open_answer: bool) -> str:
    messages: Any = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    text: Any = tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=open_answer
    )
    return text


@pytest.mark.parametrize("turns", [TURNS, TURNS[:3], TURNS[:2], TURNS[:1]])
def test_v1(conversations: dict[str, Any], smollm2_tokenizer: PreTrainedTokenizerBase, turns: list[str]) -> None:
    theirs = conversations["v1"].copy()
    open_answer = len(turns) % 2 == 1
    for index, text in enumerate([*turns, *[None] * open_answer]):
        theirs.append_message(theirs.roles[index % 2], text)
    expected = theirs.get_prompt().replace("</s>", smollm2_tokenizer.eos_token)
    template = prepare_chat_template(smollm2_tokenizer, "llava_v1")
    assert render(smollm2_tokenizer, template, turns, open_answer=open_answer) == (
        smollm2_tokenizer.bos_token + expected
    )


def test_plain(conversations: dict[str, Any], smollm2_tokenizer: PreTrainedTokenizerBase) -> None:
    expected = "<image>" + TURNS[1] + conversations["plain"].sep  # LLaVA's preprocess_plain
    text = render(smollm2_tokenizer, LLAVA_PLAIN, TURNS[:2], open_answer=False)
    assert text == smollm2_tokenizer.bos_token + expected


def test_a_system_turn_replaces_that_of_v1(smollm2_tokenizer: PreTrainedTokenizerBase) -> None:
    messages: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Q"}]
    text: Any = smollm2_tokenizer.apply_chat_template(
        messages, chat_template=CHAT_TEMPLATES["llava_v1"], tokenize=False, add_generation_prompt=True
    )
    assert text == f"{smollm2_tokenizer.bos_token}Be brief. USER: Q ASSISTANT:"


QUESTION: list[dict[str, Any]] = [{"type": "image"}, {"type": "text", "text": "What?"}]
IN_ORDER = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ '<image>\\n' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}{% endif %}{% endfor %}"
)


def test_a_template_that_places_images_itself_is_unchanged(
    smollm2_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
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
def test_the_images_of_a_turn_are_placed_as_in_training(
    smollm2_tokenizer: PreTrainedTokenizerBase, content: list[dict[str, Any]], expected: str
) -> None:
    """The template itself moves images to the front, the LLM's own and one that keeps the order of parts."""
    messages: Any = [{"role": "user", "content": content}]
    for given in (None, IN_ORDER):
        template = prepare_chat_template(smollm2_tokenizer, given)
        text: Any = smollm2_tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
        assert expected in text
        assert text.count("<image>") == expected.count("<image>")


def test_a_template_that_prints_lists_is_extended(smollm2_tokenizer: PreTrainedTokenizerBase) -> None:
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
