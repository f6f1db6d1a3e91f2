"""How templates like those of well-known models open and close the assistant's turn, and what is made of them."""

import copy
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase

from sparse_vlm.data.conversations.encoding import IGNORE, encode
from sparse_vlm.data.conversations.samples import parse_sample
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.build import build_vlm, load_vlm
from sparse_vlm.vlm.chat import GREEDY, answer, encode_messages, encode_prompt, user_message
from sparse_vlm.vlm.language.templates import prepare_chat_template
from sparse_vlm.vlm.language.turns import ChatFormat, check_round_trip, control_tokens, end_tokens, render
from sparse_vlm.vlm.processing import SparseVLMProcessor, add_image_token
from tests.random_llama import random_llama

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_WITHOUT_PROMPT = CHATML.split("{% if")[0]
QWEN2 = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}" + CHATML
)
# The block of thoughts stands before the last answer, and before the one to be generated if thinking is off.
QWEN3 = (
    "{% for m in messages %}{% set content = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}"
    "{% endif %}{{ content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
# Thoughts are always opened, and stripped from what was said before.
DEEPSEEK_R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{{ '<|Assistant|>' + m.content.split('</think>')[-1] + eos_token }}"
    "{% else %}{{ '<|User|>' + m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
# Channels; another token ends the last answer than those before.
GPT_OSS = (
    "{{ '<|start|>system<|message|>Today: ' + strftime_now('%Y-%m-%d') + '<|end|>' }}{% for m in messages %}"
    "{% if m.role == 'assistant' %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content }}"
    "{{ '<|return|>' if loop.last else '<|end|>' }}"
    "{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{{ m.content | trim }}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAMA3 = (
    '{{ bos_token }}{% if strftime_now is defined %}{% set date = strftime_now("%d %b %Y") %}{% endif %}'
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date + '<|eot_id|>' }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
NEW_TOKENS = ["<|Assistant|>", "<|User|>", "<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>"]
NEW_TOKENS += ["<start_of_turn>", "<end_of_turn>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
EMPTY = "<think>\n\n</think>\n\n"
TURNS = ("<image>\nIs it red?", "yes", "Is it blue?", "no", "Why?", "It is red.")


@pytest.fixture(scope="module")
def tokenizer(smollm2_tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """SmolLM2's with the others' control tokens, and with Qwen's and Llama 3's rule of where words end."""
    tokenizer: Any = copy.deepcopy(smollm2_tokenizer)
    tokenizer.add_tokens(NEW_TOKENS, special_tokens=True)
    words = pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    add_image_token(tokenizer)
    return tokenizer


def chat_format(tokenizer: PreTrainedTokenizerBase, template: str) -> ChatFormat:
    prepared = prepare_chat_template(tokenizer, template)
    return ChatFormat(tokenizer, prepared, add_image_token(tokenizer), 3)


def sample(*turns: str, system: str | None = None) -> Any:
    said = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(turns)]
    first = [] if system is None else [{"from": "system", "value": system}]
    return parse_sample({"id": "s1", "image": "a.png", "conversations": first + said}, 0)


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
def test_every_answer_is_learned_as_it_is_generated(
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
        # up to each answer the training row is the prompt that chat and evaluation give
        prompt = render(tokenizer, chat.chat_template, one.turns[: 2 * turn + 1], open_answer=True)
        assert prompt.endswith(opening)
        assert row.input_ids[: start + 1] == chat.tokens(prompt)
        run = next(end for end in range(start, len(row.targets) + 1) if end not in learned)
        *words, end = row.targets[start:run]
        assert tokenizer.decode(words).strip() == TURNS[2 * turn + 1]
        assert tokenizer.decode([end]) in ends


def test_thinking_can_not_be_switched_on_by_the_caller(tokenizer: PreTrainedTokenizerBase) -> None:
    """Training has not seen it."""
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
def test_a_date_is_that_of_the_build(
    tokenizer: PreTrainedTokenizerBase, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare_chat_template(tokenizer, template)
    text = render(tokenizer, prepared, [("user", "Why?")])
    assert "strftime_now(" not in prepared
    assert datetime.now().strftime("%Y-%m-%d" if template == GPT_OSS else "%d %b %Y") in text


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (CHATML.replace("<|im_end|>", "</turn>"), "could not learn to stop"),  # text, no token of this tokenizer
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
def test_what_cannot_be_mended_is_one_sentence(
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


def test_a_templates_own_refusal_names_the_sample(tokenizer: PreTrainedTokenizerBase) -> None:
    chat = chat_format(tokenizer, GEMMA)
    with pytest.raises(UserError, match=r"Sample s1: The chat template refuses .*: System role not supported\."):
        encode(sample(*TURNS, system="Be brief."), chat)


def test_an_answer_with_thoughts_of_its_own_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    """The template would strip them, and what is learned would not be what the data say."""
    with pytest.raises(UserError, match="Sample s1: The chat template"):
        encode(sample("<image>\nWhy?", "<think>It is hot.</think>Red"), chat_format(tokenizer, QWEN3))


def test_the_template_named_default_of_several(tokenizer: PreTrainedTokenizerBase) -> None:
    several: Any = copy.deepcopy(tokenizer)
    several.chat_template = {"default": CHATML, "tool_use": "{{ tools }}"}
    assert prepare_chat_template(several) == prepare_chat_template(tokenizer, CHATML)
    several.chat_template = {"rag": CHATML, "tool_use": CHATML}
    with pytest.raises(UserError, match="has the chat templates rag, tool_use and none named default"):
        prepare_chat_template(several)


def test_a_model_on_a_base_llm_stops_where_the_template_ends_its_turn(
    tokenizer: PreTrainedTokenizerBase, encoder_dir: Path, tmp_path: Path, images: list[Any]
) -> None:
    """The LLM's eos is <|endoftext|>, as that of Qwen2.5's base models; the head below says <|im_end|> at once."""
    base: Any = copy.deepcopy(tokenizer)
    base.eos_token = base.pad_token = "<|endoftext|>"
    base.chat_template = CHATML
    llama: Any = random_llama(len(base), initializer_range=0.1, tie_word_embeddings=False, eos_token_id=0)
    llama.save_pretrained(tmp_path / "llm")
    base.save_pretrained(tmp_path / "llm")
    build_vlm(encoder_dir, tmp_path / "llm", tmp_path / "vlm")
    model: Any
    model, processor = load_vlm(tmp_path / "vlm")
    stop = base.convert_tokens_to_ids("<|im_end|>")
    assert model.generation_config.eos_token_id == [0, stop]
    inputs = processor(text="<image>\nWhat?", images=images[0], return_tensors="pt")
    first = int(model.generate(**inputs, max_new_tokens=1, **GREEDY)[0, -1])
    head = model.lm_head.weight.data
    head[[first, stop]] = head[[stop, first]]  # now the model says <|im_end|> where it said another token
    assert model.generate(**inputs, max_new_tokens=9, **GREEDY).shape[1] == inputs["input_ids"].shape[1] + 1


def test_an_llm_without_eos_and_padding(encoder_dir: Path, tmp_path: Path, tokenizer: Any, images: list[Any]) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.eos_token = bare.pad_token = bare.bos_token = None
    bare.chat_template = CHATML
    llama = random_llama(len(bare), bos_token_id=None, eos_token_id=None, pad_token_id=None)
    llama.generation_config.eos_token_id = None
    llama.save_pretrained(tmp_path / "llm")
    bare.save_pretrained(tmp_path / "llm")
    build_vlm(encoder_dir, tmp_path / "llm", tmp_path / "vlm")
    model, processor = load_vlm(tmp_path / "vlm")
    assert (processor.tokenizer.eos_token, processor.tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    assert isinstance(answer(model, processor, images[0], "What?", max_new_tokens=2), str)


@pytest.mark.parametrize("template", [CHATML, GEMMA])
def test_bos_comes_from_the_template_alone(
    tokenizer: PreTrainedTokenizerBase, template: str, vlm: Any, images: list[Any]
) -> None:
    """The tokenizer adds one wherever it may, as Llama's does; the template writes one, or none."""
    adding: Any = copy.deepcopy(tokenizer)
    bos = adding.convert_tokens_to_ids(adding.bos_token)
    adding.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{adding.bos_token} $A", special_tokens=[(adding.bos_token, bos)]
    )
    assert adding("Why?")["input_ids"][0] == bos
    chat = chat_format(adding, template)
    processor = SparseVLMProcessor(vlm[1].image_processor, adding, 3, chat.chat_template)
    row = encode(sample(*TURNS[:2]), chat)
    prompt = row.input_ids[: next(i for i, target in enumerate(row.targets) if target != IGNORE) + 1]
    content = [{"type": "image", "image": images[0]}, {"type": "text", "text": "Is it red?"}]
    messages: Any = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    whole = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert prompt == whole["input_ids"][0]
    assert prompt == processor(text=text, images=images[:1])["input_ids"][0]
    assert prompt == encode_prompt(processor, images[0], "Is it red?")["input_ids"][0].tolist()
    assert prompt[:2].count(bos) == 1  # SmolLM2 opens a turn with the same token


def test_chat_says_in_a_sentence_what_the_template_refuses(vlm: Any) -> None:
    processor = copy.copy(vlm[1])
    processor.chat_template = GEMMA
    messages = [{"role": "system", "content": "Be brief."}, user_message("What?", 0)]
    with pytest.raises(UserError, match="refuses the conversation: System role not supported"):
        encode_messages(processor, messages, [])


def test_control_tokens_are_the_tokenizers_special_ones(tokenizer: PreTrainedTokenizerBase) -> None:
    assert {"<|im_end|>", "<|return|>", "<image>"} <= set(control_tokens(tokenizer).values())
