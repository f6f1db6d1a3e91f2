"""Answers files: what is accepted, what is refused with which sentence, and how a log goes on."""

import json
from pathlib import Path

import pytest

from eval.answers import Answer, match_answers, open_log, read_answers
from eval.protocol import Question
from sparse_vlm.errors import UserError

QUESTIONS = [Question(i, f"question {i}?", Path("0.png")) for i in range(4)]
WEIGHTS = {"weights": "abc"}


def line(question_id: int, text: str = "yes", **more: object) -> str:
    return json.dumps({"question_id": question_id, "text": text, **more})


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{entry}\n" for entry in lines), encoding="utf-8")
    return path


def test_llavas_own_lines_are_read(tmp_path: Path) -> None:
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
        ([""], "line 2 is not JSON"),
    ],
)
def test_malformed_lines_are_named(tmp_path: Path, content: list[str], sentence: str) -> None:
    file = write(tmp_path / "answers.jsonl", line(0), *content)
    with pytest.raises(UserError, match=sentence):
        read_answers(file)
    with pytest.raises(UserError, match="Cannot read the answers"):
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


def test_a_log_goes_on_and_drops_a_torn_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "answers.jsonl"
    with open_log(file, QUESTIONS, "m", WEIGHTS) as log:
        assert log.done == set()
        log.append([Answer(2, "q", "ja\u2028\n„nein“", "m", WEIGHTS)])
        log.append([Answer(0, "q", "yes", "m", WEIGHTS)])
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"question_id": 1, "prompt": "\xc3')  # cut inside a character
    with open_log(file, QUESTIONS, "m", WEIGHTS) as log:
        assert log.done == {0, 2}
        assert "cut off" in capsys.readouterr().out
        log.append([Answer(1, "q", "no", "m", WEIGHTS), Answer(3, "q", "no", "m", WEIGHTS)])
        assert log.done == {0, 1, 2, 3}
    assert file.read_bytes().startswith(whole)
    texts = match_answers(read_answers(file), QUESTIONS, file)
    assert texts == {0: "yes", 1: "no", 2: "ja\u2028\n„nein“", 3: "no"}


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([line(0, model_id="m", metadata=WEIGHTS), "{"], "line 2 is not JSON"),
        ([line(0, model_id="m", metadata=WEIGHTS)] * 2, "more than once"),
        ([line(9, model_id="m", metadata=WEIGHTS)], "not among"),
        ([line(0, model_id="other", metadata=WEIGHTS)], "Delete the file"),
        ([line(0, model_id="m", metadata={"weights": "def"})], "Delete the file"),
    ],
)
def test_a_log_refuses_what_does_not_belong_to_it(tmp_path: Path, lines: list[str], sentence: str) -> None:
    file = write(tmp_path / "answers.jsonl", *lines)
    before = file.read_bytes()
    with pytest.raises(UserError, match=sentence), open_log(file, QUESTIONS, "m", WEIGHTS):
        pass
    assert file.read_bytes() == before


def test_two_writers_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    writing, second = (open_log(file, QUESTIONS, "m", WEIGHTS) for _ in range(2))
    with writing, pytest.raises(UserError, match="Another process is writing"), second:
        pass
    with open_log(file, QUESTIONS, "m", WEIGHTS) as log:
        assert log.done == set()
