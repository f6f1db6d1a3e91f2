"""The label mask token by token on several templates, independent turns, and bad LLaVA JSON."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparse_vlm.data.conversations import (
    IGNORE,
    ChatFormat,
    Row,
    encode,
    encode_independent,
    parse_sample,
    read_samples,
)
from sparse_vlm.errors import UserError

VICUNA = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}{% elif m.role == 'assistant' %}"
    "{{ 'ASSISTANT: ' + m.content + eos_token }}{% else %}{{ m.content + ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)


def record(*turns: str, image: str | None = "a.png", **fields: Any) -> dict[str, Any]:
    roles = ("human", "gpt") * len(turns)
    conversation = [{"from": role, "value": text} for role, text in zip(roles, turns, strict=False)]
    return {"id": "s1", "conversations": conversation, **({"image": image} if image else {}), **fields}


def labelled(row: Row, chat: ChatFormat) -> list[list[str]]:
    """Runs of consecutive targets as token strings."""
    runs: list[list[str]] = [[]]
    for target in row.targets:
        if target == IGNORE:
            runs.append([])
        else:
            runs[-1].append(chat.tokenizer.decode([target]))
    return [run for run in runs if run]


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
    ],
)
def test_answer_and_its_end_are_the_only_targets(chat: ChatFormat, template: str, expected: list[list[str]]) -> None:
    tokenizer = copy.deepcopy(chat.tokenizer)
    tokenizer.add_tokens(["<|user|>", "<|assistant|>", "<|end|>"], special_tokens=True)
    other = replace(chat, tokenizer=tokenizer, chat_template=template)
    row = encode(parse_sample(record("<image>\nWhat is it?", "A red circle.", "Sure?", "Yes"), 0), other)
    eos = tokenizer.eos_token
    assert labelled(row, other) == [[eos if token == "<E>" else token for token in run] for run in expected]
    shifted = [(token, target) for token, target in zip(row.input_ids[1:], row.targets, strict=False)]
    assert all(token == target for token, target in shifted if target != IGNORE)


def test_template_without_an_end_of_turn_is_refused(chat: ChatFormat) -> None:
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
def test_template_that_rewrites_the_prompt_is_refused(chat: ChatFormat, changing: str) -> None:
    with pytest.raises(UserError, match=r"Sample s1.*differently once the answer follows"):
        encode(parse_sample(record("<image>\nQ", "A"), 0), replace(chat, chat_template=changing))


def test_control_token_in_the_text_is_refused(chat: ChatFormat) -> None:
    with pytest.raises(UserError, match=r"Sample s1 holds .*'<\|im_end\|>'"):
        encode(parse_sample(record("<image>\nQ", "A<|im_end|>"), 0), chat)


def test_independent_turns_are_the_single_conversations_behind_one_prefix(chat: ChatFormat) -> None:
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


def test_an_independent_turn_may_be_the_image_alone(chat: ChatFormat) -> None:
    row = encode_independent(parse_sample(record("<image>", "a red circle", "Is it blue?", "no"), 0), chat)
    alone = encode(parse_sample(record("<image>", "a red circle"), 0), chat)
    first = [i for i, segment in enumerate(row.segments) if segment in (0, 1)]
    assert [row.input_ids[i] for i in first] == alone.input_ids


def test_placeholder_is_brought_to_the_front() -> None:
    assert parse_sample(record("What is it?\n<image>", "A"), 0).turns[0] == ("user", "<image>\nWhat is it?")


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (record("no placeholder", "A"), "Sample s1 has one image but 0 <image> in its text; it needs 1"),
        (record("<image><image>\nQ", "A"), "Sample s1 has one image but 2 <image>"),
        (record("<image>\nQ", "A", image=None), "Sample s1 has no image but 1 <image>"),
        (record("Q", "see <image>"), "must stand in the first human turn"),
        (record("<image>\nQ", "A", "B"), r"roles must be .* they are: human, gpt, human\."),
        (record("<image>\nQ", "A", conversations=[{"from": "gtp", "value": "x"}]), "'gtp'. Did you mean 'gpt'"),
        (record("<image>\nQ", ""), "gpt turn has no text"),
        (record("<image>\nQ", "A", image=["a", "b"]), '"image" must be one relative path'),
        ({"image": "a.png"}, 'Sample number 7 has no "conversations"'),
    ],
)
def test_bad_samples_are_named(bad: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse_sample(bad, 7)


def test_json_and_jsonl_hold_the_same(tmp_path: Path) -> None:
    records = [record("<image>\nQ", "A"), record("Q", "A", image=None)]
    (tmp_path / "a.json").write_text(json.dumps(records))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    assert read_samples(tmp_path / "a.json") == read_samples(tmp_path / "a.jsonl") == records


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.json does not exist"):
        read_samples(tmp_path / "missing.json")
    (tmp_path / "b.json").write_text("[{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_samples(tmp_path / "b.json")
    (tmp_path / "c.json").write_text("[]")
    with pytest.raises(UserError, match="non-empty list"):
        read_samples(tmp_path / "c.json")
