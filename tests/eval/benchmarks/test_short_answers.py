"""Questions of a user's own, with their answers in the file."""

from pathlib import Path
from typing import Any

import pytest

from eval.benchmarks import short_answers
from eval.report import make_report
from sparse_vlm.errors import UserError
from tests.eval.benchmarks.anchors import write_lines

ROWS: list[dict[str, Any]] = [
    {"question_id": 0, "image": "a.jpg", "text": "what is this?", "category": "name", "answer": "English springer"},
    {"question_id": "b", "image": "a.jpg", "text": "is there a cat?", "category": "yes/no", "answer": "no"},
    {"question_id": 2, "image": "b/c.jpg", "text": "is there a dog?", "category": "yes/no", "answer": "yes"},
    {"question_id": 3, "image": "b/c.jpg", "text": "is there a cow?", "category": "yes/no", "answer": "no"},
    {"question_id": 4, "text": "is fire cold?", "category": "yes/no", "answer": "no"},
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "questions.jsonl", ROWS)


def answers(folder: Path, *texts: str) -> Path:
    lines = [{"question_id": row["question_id"], "text": text} for row, text in zip(ROWS, texts, strict=True)]
    return write_lines(folder / "answers.jsonl", lines)


def test_accuracy_by_category(file: Path, tmp_path: Path) -> None:
    given = answers(tmp_path, " english springer.", "no", "no", " ", "nope")
    report = make_report("short_answers", given, questions=file)
    assert report["scores"] == {"accuracy": 0.4, "accuracy_by_type": {"name": 1.0, "yes/no": 0.25}}
    assert report["unreadable"] == 1
    assert report["floors"]["most frequent answer"] == {
        "accuracy": 0.8,
        "accuracy_by_type": {"name": 1.0, "yes/no": 0.75},
    }
    low, high = report["confidence_95"]["accuracy_by_type"]["yes/no"]
    assert low < 0.25 < high


def test_images_are_in_the_folder(file: Path, tmp_path: Path) -> None:
    questions = short_answers.load_questions(file, tmp_path)
    assert questions[2].image == tmp_path / "b" / "c.jpg"
    assert questions[4].image is None


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROWS[0], ROWS[1] | {"question_id": "0"}], "two questions with the id '0'"),
        ([{**ROWS[0], "answer": 1}], '"answer" must be of type str, got 1'),
        ([{key: ROWS[0][key] for key in ROWS[0] if key != "answer"}], '"answer" is missing'),
    ],
)
def test_malformed_files(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "questions.jsonl", rows)
    with pytest.raises(UserError, match=message):
        short_answers.read_known(short_answers.load_questions(file, None), file)


def test_the_file_of_questions_is_needed() -> None:
    with pytest.raises(UserError, match="This benchmark needs --questions: LLaVA's"):
        short_answers.load_questions(None, None)
