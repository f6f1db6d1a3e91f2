"""The answers file of a run: resumed, shared by processes, incomplete lines dropped."""

import json
import multiprocessing
from collections.abc import Sequence
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest

from eval.answer_log import AnswerLog, open_log
from eval.answers import Answer, Places, match_answers, read_answers
from eval.scoring.protocol import Question
from sparse_vlm.errors import UserError

QUESTIONS = [Question(i, f"question {i}?", Path("0.png")) for i in range(4)]
WEIGHTS = {"weights": "abc"}
SPAWN = multiprocessing.get_context("spawn")  # forking would copy the parent's threads incompletely


def line(question_id: int, text: str = "yes", **more: object) -> str:
    return json.dumps({"question_id": question_id, "text": text, **more})


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{entry}\n" for entry in lines), encoding="utf-8")
    return path


def test_a_log_resumes_and_drops_an_incomplete_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "answers.jsonl"
    with open_log(file, QUESTIONS, "m", WEIGHTS) as log:
        assert log.done == set()
        log.append([(2, "ja\u2028\n„nein“")])
        log.append([(0, "yes")])
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"question_id": 1, "prompt": "\xc3')  # cut inside a character
    with open_log(file, QUESTIONS, "m", WEIGHTS) as log:
        assert log.done == {0, 2}
        assert "cut off" in capsys.readouterr().out
        assert file.read_bytes() == whole
        log.append([(1, "no"), (3, "no")])
        assert log.done == {0, 1, 2, 3}
    assert [answer.question_id for answer in read_answers(file)] == [0, 1, 2, 3]  # complete: in the questions' order
    assert match_answers(read_answers(file), QUESTIONS, file) == ["yes", "no", "ja\u2028\n„nein“", "no"]
    assert [path.name for path in file.parent.iterdir()] == ["answers.jsonl"]  # no locks are left behind


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
def test_a_log_refuses_other_answers(tmp_path: Path, lines: list[str], sentence: str) -> None:
    file = write(tmp_path / "answers.jsonl", *lines)
    before = file.read_bytes()
    with pytest.raises(UserError, match=sentence), open_log(file, QUESTIONS, "m", WEIGHTS):
        pass
    assert file.read_bytes() == before


def hold_a_part(file: Path, part: Sequence[int], claimed: Event, finish: Event) -> None:
    """Another process: claims part 0, answers its first question, and waits."""
    log = AnswerLog(file, QUESTIONS, "m", WEIGHTS)
    with log.claim(0, part) as pending:
        assert pending == list(part)
        log.append([(part[0], "by the other process")])
        claimed.set()
        finish.wait(60)


def test_a_claimed_part_is_left_alone_until_its_process_ends(tmp_path: Path) -> None:
    file, claimed, finish = tmp_path / "answers.jsonl", SPAWN.Event(), SPAWN.Event()
    other = SPAWN.Process(target=hold_a_part, args=(file, [0, 1], claimed, finish))
    other.start()
    assert claimed.wait(60)
    with open_log(file, QUESTIONS, "m", WEIGHTS) as log:
        with log.claim(0, [0, 1]) as pending:
            assert pending == []
        with log.claim(1, [2, 3]) as pending:
            assert pending == [2, 3]
            log.append([(3, "ours"), (2, "ours")])
        other.kill()  # no finally, no atexit
        other.join()
        with file.open("ab") as torn:
            torn.write(b'{"question_id": 1')
        with log.claim(0, [0, 1]) as pending:
            assert pending == [1]
            log.append([(1, "ours")])
    texts = match_answers(read_answers(file), QUESTIONS, file)
    assert texts == ["by the other process", "ours", "ours", "ours"]


def test_a_file_sorted_by_another_process_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    slow = AnswerLog(file, QUESTIONS, "m", WEIGHTS)
    slow.append([(3, "a much longer text than the others have")])
    lines = [line(i, "x", prompt=f"question {i}?", model_id="m", metadata=WEIGHTS) for i in range(4)]
    write(tmp_path / "sorted", *lines)
    (tmp_path / "sorted").replace(file)
    with slow.claim(0, range(4)) as pending:
        assert pending == []
    assert slow.done == {0, 1, 2, 3}
    slow.close()


def test_sharing_a_file_reads_every_line_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two writers take turns: neither reads known lines again for each line of the other."""
    looked_at: list[int] = []
    find = Places.find

    def count(self: Places, answers: Sequence[Answer], *others: Any) -> list[int]:
        looked_at.append(len(answers))
        return find(self, answers, *others)

    monkeypatch.setattr(Places, "find", count)
    questions = [Question(i, "why?", Path("0.png")) for i in range(100)]
    file = tmp_path / "answers.jsonl"
    with open_log(file, questions, "m", WEIGHTS) as first, open_log(file, questions, "m", WEIGHTS) as second:
        for index in range(0, 100, 2):
            first.append([(index, "a")])
            second.append([(index + 1, "b")])
    assert sum(looked_at) <= 3 * len(questions)
    assert match_answers(read_answers(file), questions, file) == ["a", "b"] * 50


def test_a_full_disk_is_a_one_line_error_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "answers.jsonl"
    with open_log(file, QUESTIONS, "m", WEIGHTS) as log:
        log.append([(0, "yes")])
        with monkeypatch.context() as patch:
            patch.setattr(log, "path", Path("/dev/full"))
            patch.setattr(log, "_read_on", lambda: None)
            with pytest.raises(UserError, match="Cannot write /dev/full: No space left on device"):
                log.append([(1, "no")])
        log.append([(1, "no")])
    assert [answer.question_id for answer in read_answers(file)] == [0, 1]
