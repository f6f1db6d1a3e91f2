"""LLaVA's formats: the texts of LLaVA's own conversation.py, which is read where the package lies and not imported."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

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


def test_a_system_turn_takes_the_place_of_v1s_own(smollm2_tokenizer: PreTrainedTokenizerBase) -> None:
    messages: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Q"}]
    text: Any = smollm2_tokenizer.apply_chat_template(
        messages, chat_template=CHAT_TEMPLATES["llava_v1"], tokenize=False, add_generation_prompt=True
    )
    assert text == f"{smollm2_tokenizer.bos_token}Be brief. USER: Q ASSISTANT:"
