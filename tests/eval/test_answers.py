"""Answers files: accepted and refused lines, and the question that an answer belongs to."""

import json
from pathlib import Path

import pytest

from eval.answers import Answer, match_answers, read_answers
from eval.scoring.protocol import Question
from sparse_vlm.errors import UserError

QUESTIONS = [Question(i, f"question {i}?", Path("0.png")) for i in range(4)]


def line(question_id: int, text: str = "yes", **more: object) -> str:
    return json.dumps({"question_id": question_id, "text": text, **more})


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{entry}\n" for entry in lines), encoding="utf-8")
    return path


def test_lines_of_llava_are_read(tmp_path: Path) -> None:
    file = write(
        tmp_path / "answers.jsonl",
        '{"question_id": 10000001, "prompt": "Is there a snowboard in the image?", "text": "No", '
        '"answer_id": "gaRZWbwz6sUWkyDU4yugok", "model_id": "llava-v1.5-13b", "metadata": {}}',
        '{"question_id": "4", "text": "B"}',
    )
    first, second = read_answers(file)
    assert first == Answer(10000001, "Is there a snowboard in the image?", "No", "llava-v1.5-13b", {})
    assert second == Answer("4", "", "B", "", {})


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (["{"], "line 2 is not JSON"),
        (["[1, 2]"], "line 2 must be an object"),
        (['{"text": "no"}'], 'line 2: "question_id" is missing'),
        (['{"question_id": 1}'], 'line 2: "text" is missing'),
        (['{"question_id": 1, "text": null}'], 'line 2: "text" is None'),
        (['{"question_id": 1.5, "text": "no"}'], 'line 2: "question_id" is 1.5'),
    ],
)
def test_errors_name_malformed_lines(tmp_path: Path, content: list[str], sentence: str) -> None:
    file = write(tmp_path / "answers.jsonl", line(0), *content)
    with pytest.raises(UserError, match=sentence):
        read_answers(file)
    with pytest.raises(UserError, match="Cannot read"):
        read_answers(tmp_path / "absent.jsonl")


@pytest.mark.parametrize(
    ("ids", "sentence"),
    [
        ([0, 1, 2], "question id 3 has no answer"),
        ([0, 1, 1, 1, 2, 3], "question id 1 is answered more than once"),
        ([0, 1, 2, 3, 7, 8], r"question id 7 is not among the benchmark's questions \(2 such"),
        ([], r"question id 0 has no answer \(4 such"),
    ],
)
def test_every_question_needs_exactly_one_answer(ids: list[int], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        match_answers([Answer(id_, "", "yes", "") for id_ in ids], QUESTIONS, Path("a.jsonl"))


def test_answers_may_come_in_any_order() -> None:
    answers = [Answer(id_, "", f"text {id_}", "") for id_ in (3, 1, 0, 2)]
    assert match_answers(answers, QUESTIONS, Path("a.jsonl"))[3] == "text 3"


SHARED = [Question("a.png", f"Is it {word}?\nAnswer briefly.", Path("a.png")) for word in ("red", "blue", "red")]


def test_the_first_line_of_the_prompt_identifies_questions_with_the_same_id() -> None:
    """In TextVQA and MME the id is the image's. Equal questions take their answers in order."""
    prompts = ["<image>\nIs it blue?\nOther hints.", "Is it red?", "Is it red?"]
    answers = [Answer("a.png", prompt, f"text {i}", "") for i, prompt in enumerate(prompts)]
    assert match_answers(answers, SHARED, Path("a.jsonl")) == ["text 1", "text 0", "text 2"]
    with pytest.raises(UserError, match="'Is it green\\?' is none of them"):
        match_answers([*answers[:2], Answer("a.png", "Is it green?", "", "")], SHARED, Path("a.jsonl"))
    with pytest.raises(UserError, match="answered more than once"):
        match_answers([*answers, answers[0]], SHARED, Path("a.jsonl"))


def test_the_order_identifies_complete_answers_without_prompts() -> None:
    answers = [Answer("a.png", "", f"text {i}", "") for i in range(3)]
    assert match_answers(answers, SHARED, Path("a.jsonl")) == ["text 0", "text 1", "text 2"]
    with pytest.raises(UserError, match="the prompt '' is none of them"):
        match_answers(answers[:2], SHARED, Path("a.jsonl"))


def test_an_id_may_be_a_number_or_a_string() -> None:
    answers = [Answer(str(id_), "", f"text {id_}", "") for id_ in range(4)]
    assert match_answers(answers, QUESTIONS, Path("a.jsonl"))[2] == "text 2"
    with pytest.raises(UserError, match="more than once"):
        match_answers([*answers, Answer(3, "", "", "")], QUESTIONS, Path("a.jsonl"))


def test_byte_order_marks_blank_lines_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    text = line(0) + "\r\n\r\n" + line(1) + "\r\n \r\n"
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [answer.question_id for answer in read_answers(file)] == [0, 1]
    file.write_text(text + "{\n")
    with pytest.raises(UserError, match="line 5 is not JSON"):  # blank lines count
        read_answers(file)
