"""The assistant's turns under templates like those of well-known models, before and after preparation."""

import copy
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from sparse_vlm.data.conversations.encoding import IGNORE, encode
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.language.control_tokens import control_tokens
from sparse_vlm.vlm.language.templates import prepare_chat_template
from sparse_vlm.vlm.language.turns import check_round_trip, end_tokens, marks_answers, render
from tests.vlm.language.known_templates import (
    CHATML,
    CHATML_WITHOUT_PROMPT,
    DEEPSEEK_R1,
    GEMMA,
    GPT_OSS,
    LLAMA3,
    MISTRAL,
    QWEN2,
    QWEN3,
    TURNS,
    chat_format,
    sample,
)

ROOT = Path(__file__).parents[3]
EMPTY = "<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    ("template", "opening", "ends"),
    [
        (CHATML, "<|im_start|>assistant\n", ["<|im_end|>"]),
        (CHATML_WITHOUT_PROMPT, "<|im_start|>assistant\n", ["<|im_end|>"]),
        (QWEN2, "<|im_start|>assistant\n", ["<|im_end|>"]),
        (QWEN3, f"<|im_start|>assistant\n{EMPTY}", ["<|im_end|>"]),
        (DEEPSEEK_R1, f"<|Assistant|>{EMPTY}", ["EOS"]),
        (GPT_OSS, "<|start|>assistant<|channel|>final<|message|>", ["<|return|>", "<|end|>"]),
        (GEMMA, "<start_of_turn>model\n", ["<end_of_turn>"]),
        (LLAMA3, "<|start_header_id|>assistant<|end_header_id|>\n\n", ["<|eot_id|>"]),
        (MISTRAL, " [/INST]", ["EOS"]),
    ],
)
def test_training_and_generation_see_the_same_tokens(
    tokenizer: PreTrainedTokenizerBase, template: str, opening: str, ends: list[str]
) -> None:
    chat = chat_format(tokenizer, template)
    check_round_trip(chat)
    ends = [end.replace("EOS", str(tokenizer.eos_token)) for end in ends]
    assert tokenizer.convert_ids_to_tokens(end_tokens(tokenizer, chat.chat_template)) == ends
    one = sample(*TURNS)
    row = encode(one, chat)
    learned = [i for i, target in enumerate(row.targets) if target != IGNORE]
    starts = [i for i in learned if i - 1 not in learned]
    assert len(starts) == 3
    for turn, start in enumerate(starts):
        # up to each answer the training row equals the prompt of chat and evaluation
        prompt = render(tokenizer, chat.chat_template, one.turns[: 2 * turn + 1], open_answer=True)
        assert prompt.endswith(opening)
        assert row.input_ids[: start + 1] == chat.tokens(prompt)
        run = next(end for end in range(start, len(row.targets) + 1) if end not in learned)
        *words, end = row.targets[start:run]
        assert tokenizer.decode(words).strip() == TURNS[2 * turn + 1]
        assert tokenizer.decode([end]) in ends


QUICKSTART = "train/quickstart/chat_template.jinja"
KNOWN = [CHATML, CHATML_WITHOUT_PROMPT, QWEN2, QWEN3, DEEPSEEK_R1, GPT_OSS, GEMMA, LLAMA3, MISTRAL]
OWN_MARKS = CHATML.replace("{{ '<|im_start|>' + m.role", "{% generation %}{{ '<|im_start|>' + m.role").replace(
    "<|im_end|>\n' }}", "<|im_end|>\n' }}{% endgeneration %}"
)  # encloses all turns
STRAY = ("What does ' [/INST]' mean?", "a", "And ' ASSISTANT:' or 'model\n'?", "start", "a", "No.")


@pytest.mark.parametrize("template", [*KNOWN, OWN_MARKS, "llava_v1", QUICKSTART])
@pytest.mark.parametrize("texts", [TURNS, STRAY])
def test_answers_are_marked_for_the_losses_of_other_programs(
    tokenizer: PreTrainedTokenizerBase, template: str, texts: tuple[str, ...]
) -> None:
    """transformers' mask covers what the project's own targets cover, also where users type an opening."""
    chat = chat_format(tokenizer, str(ROOT / template) if template == QUICKSTART else template)
    assert marks_answers(tokenizer, chat.chat_template)
    turns = [(("user", "assistant")[i % 2], text.replace("<image>\n", "")) for i, text in enumerate(texts)]
    ids, spans = chat.answers(turns)
    messages: Any = [{"role": role, "content": text} for role, text in turns]
    found: Any = tokenizer.apply_chat_template(
        messages, chat_template=chat.chat_template, return_dict=True, return_assistant_tokens_mask=True
    )
    assert found["input_ids"] == ids
    marked = [place for place, mark in enumerate(found["assistant_masks"]) if mark]
    assert marked == [place for start, end in spans for place in range(start, end + 1)]


@pytest.mark.parametrize("template", [CHATML, QWEN2, GEMMA, MISTRAL, OWN_MARKS])
@pytest.mark.parametrize("count", range(1, 7))
def test_marks_change_no_text(tokenizer: PreTrainedTokenizerBase, template: str, count: int) -> None:
    prepared = prepare_chat_template(tokenizer, template)
    assert prepared != template
    typed = (*STRAY[:4], "What is <|im_start|>assistant\n or <|im_end|>?", "a")
    turns = [(("user", "assistant")[i % 2], text) for i, text in enumerate(typed[:count])]
    for open_answer in (False, True):
        texts = [render(tokenizer, each, turns, open_answer=open_answer) for each in (template, prepared)]
        assert texts[0] == texts[1]


def test_callers_cannot_enable_thinking(tokenizer: PreTrainedTokenizerBase) -> None:
    """Training does not see thoughts."""
    template = prepare_chat_template(tokenizer, QWEN3)
    messages: Any = [{"role": "user", "content": "Why?"}]
    texts: list[Any] = [
        tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True, **options
        )
        for options in ({}, {"enable_thinking": True}, {"enable_thinking": False})
    ]
    assert texts[0] == texts[1] == texts[2]
    assert texts[0].endswith(EMPTY)


@pytest.mark.parametrize("template", [LLAMA3, GPT_OSS])
def test_dates_are_those_of_the_build(
    tokenizer: PreTrainedTokenizerBase, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare_chat_template(tokenizer, template)
    text = render(tokenizer, prepared, [("user", "Why?")])
    assert "strftime_now(" not in prepared
    assert datetime.now().strftime("%Y-%m-%d" if template == GPT_OSS else "%d %b %Y") in text


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (CHATML.replace("<|im_end|>", "</turn>"), "could not learn to stop"),  # not a token of this tokenizer
        (CHATML.replace("<|im_start|>", "").replace("<|im_end|>", ""), "could not learn to stop"),
        (
            CHATML.replace("m.content", "(m.content | upper if m.role == 'assistant' else m.content)"),
            "'A RED CIRCLE.' where the answer",
        ),
        (CHATML.replace("m.content +", "m.content + '<|endoftext|> ' +"), None),
        ("{{ messages | length }}" + CHATML, "differently once the answer follows"),
        (
            CHATML.replace("m.content", "(m.content ~ (' Well.' if m.role == 'assistant' else ''))"),
            "'A red circle. Well.'",
        ),
    ],
)
def test_an_unsuitable_template_is_a_one_line_error(
    tokenizer: PreTrainedTokenizerBase, template: str, sentence: str | None
) -> None:
    def whole() -> None:
        chat = chat_format(tokenizer, template)
        check_round_trip(chat)
        end_tokens(tokenizer, chat.chat_template)

    if sentence is None:
        whole()
        return
    with pytest.raises(UserError, match=sentence):
        whole()


def test_a_refusal_by_the_template_names_the_sample(tokenizer: PreTrainedTokenizerBase) -> None:
    chat = chat_format(tokenizer, GEMMA)
    with pytest.raises(UserError, match=r"Sample s1: The chat template refuses .*: System role not supported\."):
        encode(sample(*TURNS, system="Be brief."), chat)


def test_an_answer_that_contains_thoughts_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    """The template would strip them, so that the model would learn another text than the data's."""
    with pytest.raises(UserError, match="Sample s1: The chat template"):
        encode(sample("<image>\nWhy?", "<think>It is hot.</think>Red"), chat_format(tokenizer, QWEN3))


def test_the_default_of_several_templates(tokenizer: PreTrainedTokenizerBase) -> None:
    several: Any = copy.deepcopy(tokenizer)
    several.chat_template = {"default": CHATML, "tool_use": "{{ tools }}"}
    assert prepare_chat_template(several) == prepare_chat_template(tokenizer, CHATML)
    several.chat_template = {"rag": CHATML, "tool_use": CHATML}
    with pytest.raises(UserError, match="has the chat templates rag, tool_use and none named default"):
        prepare_chat_template(several)


def test_control_tokens_are_the_tokenizers_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    assert {"<|im_end|>", "<|return|>", "<image>"} <= set(control_tokens(tokenizer))
