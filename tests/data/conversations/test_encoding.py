"""The label mask, token by token on several templates, and independent turns."""

import copy
from dataclasses import replace
from typing import Any

import pytest

from sparse_vlm.data.conversations.encoding import IGNORE, Row, encode, encode_independent
from sparse_vlm.data.conversations.samples import Sample, parse_sample
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.language.templates import LLAVA_PLAIN, LLAVA_V1
from sparse_vlm.vlm.language.turns import ChatFormat
from tests.data.conversations.records import record

VICUNA = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}{% elif m.role == 'assistant' %}"
    "{{ 'ASSISTANT: ' + m.content + eos_token }}{% else %}{{ m.content + ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (  # with one newline, because SmolLM2's tokenizer does not merge two as Llama 3's does
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n' }}"
    "{{ m.content | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n'"
    " + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
QWEN = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe helpful.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
OTHER_CONTROL_TOKENS = [
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
]


def labelled(row: Row, chat: ChatFormat) -> list[list[str]]:
    """Return the runs of consecutive targets, as token strings."""
    runs: list[list[str]] = [[]]
    for target in row.targets:
        if target == IGNORE:
            runs.append([])
        else:
            runs[-1].append(chat.tokenizer.decode([target]))
    return [run for run in runs if run]


def by_characters(sample: Sample, chat: ChatFormat) -> tuple[list[int], list[int]]:
    """Compute tokens and targets without `encode`, from the character positions of the answers."""
    messages = [{"role": role, "content": words} for role, words in sample.turns]
    text: Any = chat.tokenizer.apply_chat_template(messages, chat_template=chat.chat_template, tokenize=False)
    answers, place = [], 0
    for role, words in sample.turns:
        place = text.index(words, place)
        if role == "assistant":
            ends = [text.index(token, place) + len(token) for token in chat.control_tokens if token in text[place:]]
            answers.append((place, min(ends)))
    coded = chat.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, targets = [], []
    for token, (start, end) in zip(coded["input_ids"], coded["offset_mapping"], strict=True):
        learned = any(start < last and end > first for first, last in answers)
        width = chat.tokens_per_image if token == chat.image_token_id else 1
        ids += [token] * width
        targets += [token if learned else IGNORE] * width
    return ids, [*targets[1:], IGNORE]


def test_every_token_of_smollm2s_own_template(chat: ChatFormat) -> None:
    sample = record("<image>\nWhat is it?", "A red circle.", "Sure?", "Yes")
    sample["conversations"].insert(0, {"from": "system", "value": "Be brief."})
    row = encode(parse_sample(sample, 0), chat)
    tokens = [chat.tokenizer.decode([token]) for token in row.input_ids]
    targets = ["-" if target == IGNORE else chat.tokenizer.decode([target]) for target in row.targets]
    system = ["system", "\n", "Be", " brief", "."]
    question = ["<|im_start|>", "user", "\n", *["<image>"] * 5, "\n", "What", " is", " it", "?", "<|im_end|>", "\n"]
    head = ["<|im_start|>", *system, "<|im_end|>", "\n", *question, "<|im_start|>", "ass", "istant"]
    middle = ["\n", "<|im_start|>", "user", "\n", "Sure", "?", "<|im_end|>", "\n", "<|im_start|>", "ass", "istant"]
    assert tokens == [*head, "\n", "A", " red", " circle", ".", "<|im_end|>", *middle, "\n", "Yes"]
    answers = ["A", " red", " circle", ".", "<|im_end|>"], ["Yes", "<|im_end|>"]
    assert targets == [*["-"] * len(head), *answers[0], "-", *["-"] * len(middle), *answers[1]]
    assert row.positions == list(range(len(tokens)))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (VICUNA, [[" A", " red", " circle", ".", "<E>"], [" Yes", "<E>"]]),
        (LLAMA2, [[" A", " red", " circle", ".", " ", "<E>"], [" Yes", " ", "<E>"]]),
        (PHI3, [["A", " red", " circle", ".", "<|end|>"], ["Yes", "<|end|>"]]),
        (LLAMA3, [["A", " red", " circle", ".", "<|eot_id|>"], ["Yes", "<|eot_id|>"]]),
        (GEMMA, [["A", " red", " circle", ".", "<end_of_turn>"], ["Yes", "<end_of_turn>"]]),
        (QWEN, [["A", " red", " circle", ".", "<|im_end|>"], ["Yes", "<|im_end|>"]]),
        (LLAVA_V1, [[" A", " red", " circle", ".", "<E>"], [" Yes", "<E>"]]),
    ],
)
def test_answer_and_its_end_are_the_only_targets(chat: ChatFormat, template: str, expected: list[list[str]]) -> None:
    tokenizer = copy.deepcopy(chat.tokenizer)
    tokenizer.add_tokens(["<|user|>", "<|assistant|>", "<|end|>", *OTHER_CONTROL_TOKENS], special_tokens=True)
    other = replace(chat, tokenizer=tokenizer, chat_template=template)
    sample = parse_sample(record("<image>\nWhat is it?", "A red circle.", "Sure?", "Yes"), 0)
    row = encode(sample, other)
    eos = tokenizer.eos_token
    assert labelled(row, other) == [[eos if token == "<E>" else token for token in run] for run in expected]
    ids, targets = by_characters(sample, other)
    assert (row.input_ids, row.targets) == (ids[: len(row.targets)], targets[: len(row.targets)])
    assert set(targets[len(row.targets) :]) <= {IGNORE}, "no target may be cut off"


def test_every_token_of_llavas_v1(chat: ChatFormat) -> None:
    tokens = replace(chat, chat_template=LLAVA_V1)
    row = encode(parse_sample(record("<image>\nWhat is it?", "A red circle.", "Sure?", "Yes"), 0), tokens)
    shown = ["-" if target == IGNORE else chat.tokenizer.decode([target]) for target in row.targets]
    eos, bos = chat.tokenizer.eos_token, chat.tokenizer.bos_token
    text = chat.tokenizer.decode(row.input_ids)
    assert text.startswith(f"{bos}A chat between a curious user and an artificial intelligence assistant.")
    end = f"USER: {'<image>' * 5}\nWhat is it? ASSISTANT: A red circle.{eos}USER: Sure? ASSISTANT: Yes"
    assert text.endswith(end)
    answers = [" A", " red", " circle", ".", eos], [" Yes", eos]
    between = len(chat.tokenizer("USER: Sure? ASSISTANT:")["input_ids"]) - 1
    expected = [*answers[0], "-", *["-"] * between, *answers[1]]
    assert shown[-len(expected) :] == expected
    assert set(shown[: -len(expected)]) == {"-"}


def test_every_token_of_llavas_plain_format(chat: ChatFormat) -> None:
    plain = replace(chat, chat_template=LLAVA_PLAIN, plain=True)
    row = encode(parse_sample(record("<image>\nDescribe it.", "A red circle."), 0), plain)
    tokens = [chat.tokenizer.decode([token]) for token in row.input_ids]
    targets = ["-" if target == IGNORE else chat.tokenizer.decode([target]) for target in row.targets]
    assert tokens == [chat.tokenizer.bos_token, *["<image>"] * 5, "A", " red", " circle", "."]
    assert targets == ["-"] * 5 + ["A", " red", " circle", ".", "\n"]
    for bad in (record("<image>\nQ", "A", "Q", "A"), record("Q", "A", image=None)):
        with pytest.raises(UserError, match=r"Sample s1 has .* the plain format is for captions"):
            encode(parse_sample(bad, 0), plain)


def test_several_images_stay_where_they_are(chat: ChatFormat) -> None:
    turns = ["First <image> then <image>: which is red?", "the second", "And <image>?", "no"]
    sample = parse_sample(record(*turns, image=["a", "b", "c"]), 0)
    assert sample.images == ("a", "b", "c")
    assert sample.turns[0] == ("user", turns[0])
    row = encode(sample, chat)
    assert row.input_ids.count(chat.image_token_id) == 15
    text = chat.tokenizer.decode(row.input_ids)
    assert f"First {'<image>' * 5} then {'<image>' * 5}: which" in text
    assert labelled(row, chat) == [["the", " second", "<|im_end|>"], ["no", "<|im_end|>"]]
    with pytest.raises(UserError, match="has 3 images: --independent_turns"):
        encode_independent(sample, chat)


def test_a_template_without_an_end_of_turn_is_an_error(chat: ChatFormat) -> None:
    endless = replace(chat, chat_template=VICUNA.replace("+ eos_token", "+ ' '"))
    with pytest.raises(UserError, match="learn to stop"):
        encode(parse_sample(record("<image>\nQ", "A"), 0), endless)


@pytest.mark.parametrize(
    "changing",
    [
        "{{ messages | length }}" + LLAMA2,
        PHI3.replace("|>\n", "|>\n\n"),
    ],  # "\n\nA" is "\n", "\n", "A" for this tokenizer
)
def test_a_template_that_changes_the_prompt_is_an_error(chat: ChatFormat, changing: str) -> None:
    with pytest.raises(UserError, match=r"Sample s1.*differently once the answer follows"):
        encode(parse_sample(record("<image>\nQ", "A"), 0), replace(chat, chat_template=changing))


def test_control_tokens_in_a_text_are_text(chat: ChatFormat) -> None:
    tokenizer, typed = chat.tokenizer, "A<|im_end|>\n<|im_start|>user"
    letters = tokenizer(typed, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    plain = encode(parse_sample(record("<image>\nQ", "A"), 0), chat)
    row = encode(parse_sample(record(f"<image>\nQ{typed}", typed), 0), chat)
    assert [token for token in row.targets if token != IGNORE] == [*letters, end]
    assert row.input_ids.count(end) == plain.input_ids.count(end)
    assert row.input_ids.count(chat.image_token_id) == 5


def test_independent_turns_share_the_prefix_of_single_conversations(chat: ChatFormat) -> None:
    turns = ["<image>\nWhat shape?", "circle", "What color?", "red", "Is it blue?", "no"]
    row = encode_independent(parse_sample(record(*turns), 0), chat)
    prefix = row.segments.count(0)
    assert chat.tokenizer.decode(row.input_ids[:prefix]).endswith("user\n" + "<image>" * 5 + "\n")
    for turn in range(3):
        question, answer = turns[2 * turn : 2 * turn + 2]
        alone = encode(parse_sample(record("<image>\n" + question.removeprefix("<image>\n"), answer), 0), chat)
        mine = [i for i, segment in enumerate(row.segments) if segment in (0, turn + 1)]
        assert [row.input_ids[i] for i in mine] == alone.input_ids
        assert [row.targets[i] for i in mine] == alone.targets
        assert [row.positions[i] for i in mine] == alone.positions


def test_an_independent_turn_may_consist_of_the_image(chat: ChatFormat) -> None:
    row = encode_independent(parse_sample(record("<image>", "a red circle", "Is it blue?", "no"), 0), chat)
    alone = encode(parse_sample(record("<image>", "a red circle"), 0), chat)
    first = [i for i, segment in enumerate(row.segments) if segment in (0, 1)]
    assert [row.input_ids[i] for i in first] == alone.input_ids
