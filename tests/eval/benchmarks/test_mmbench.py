"""MMBench: the official table, circular scoring, the judge, submissions."""

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eval.benchmarks import mmbench
from eval.score import main
from eval.scoring.protocol import EncodedImage
from sparse_vlm.data.instructions import OPTION_LETTER
from sparse_vlm.errors import UserError
from tests.eval.benchmarks.anchors import write_lines

COLUMNS = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category"]


def png(colour: str) -> str:
    data = io.BytesIO()
    Image.new("RGB", (2, 2), colour).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


def row(index: int, options: str, answer: str, **more: str) -> dict[str, Any]:
    letters = dict(zip("ABCD", options.split(), strict=False))
    defaults = {"question": "What is it?", "hint": "nan", "category": "object", "l2-category": "coarse"}
    return defaults | {"index": index, "answer": answer, "image": png("red")} | letters | more


ROWS = [
    row(7, "cat dog", "A", hint="An animal."),
    row(1000007, "dog cat", "B", hint="An animal.", image="7"),
    row(8, "one two three four", "B", category="count", **{"l2-category": "fine"}),
    row(1000008, "two three four one", "A", category="count", **{"l2-category": "fine"}),
]


def write_table(path: Path, rows: list[dict[str, Any]], columns: list[str] = COLUMNS) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_table(tmp_path / "mmbench_dev.tsv", ROWS)


def test_mmbench_questions(table: Path) -> None:
    questions = mmbench.load_english(table, None)
    assert questions[0].text == f"An animal.\nWhat is it?\nA. cat\nB. dog\n{OPTION_LETTER}"
    assert questions[2].text == f"What is it?\nA. one\nB. two\nC. three\nD. four\n{OPTION_LETTER}"
    assert mmbench.load_chinese(table, None)[0].text.endswith("B. dog\n请直接回答选项字母。")
    images = [question.image for question in questions]
    assert isinstance(images[0], EncodedImage)
    assert images[0] == images[1]  # the rotation names the row that has the image
    assert [question.id for question in questions] == [7, 1000007, 8, 1000008]


def test_mmbench_is_circular(table: Path) -> None:
    questions = mmbench.load_english(table, None)
    scores = mmbench.MMBENCH.score(questions, ["A", "B. cat", "(B)", "three"], table)
    assert {path: score.value for path, score in scores.items()} == {
        ("accuracy",): 0.5,
        ("accuracy_by_ability", "coarse"): 1,
        ("accuracy_by_ability", "fine"): 0,
        ("accuracy_by_category", "count"): 0,
        ("accuracy_by_category", "object"): 1,
        ("accuracy_single_rows",): 0.75,
        ("answers_that_name_no_option",): 0,
    }
    assert scores["accuracy",].count == 2
    scores = mmbench.MMBENCH.score(questions, ["A", "B", "I see no image", "E"], table)
    assert scores["answers_that_name_no_option",].value == 0.5
    always = mmbench.floors(questions, mmbench.read_known(questions, table))
    assert always == {"always A": ["A"] * 4}
    assert mmbench.MMBENCH.score(questions, always["always A"], table)["accuracy",].value == 0


@pytest.mark.parametrize("kind", ["mark", "blank", "returns"])
def test_mmbench_tables_with_other_line_ends_and_marks(table: Path, kind: str) -> None:
    """A byte order mark, a blank last line, Windows' and Unix' line ends."""
    expected = mmbench.load_english(table, None)
    text = table.read_bytes().decode()
    changed = {"mark": "\ufeff" + text, "blank": text + "\r\n", "returns": text.replace("\r\n", "\n")}[kind]
    assert changed != text
    table.write_bytes(changed.encode())
    assert mmbench.load_english(table, None) == expected


def test_mmbench_holds_the_image_of_all_rotations_once(tmp_path: Path) -> None:
    rows = [*ROWS[:2], {**ROWS[1], "index": 2000007, "image": ROWS[0]["image"]}]
    images = [question.image for question in mmbench.load_english(write_table(tmp_path / "t.tsv", rows), None)]
    assert images[0] is images[1]
    assert images[0] is images[2]


def test_chatty_answers(tmp_path: Path) -> None:
    """An option's letter counts only near the end of the answer: "A dog" means a dog, not option A."""
    table = write_table(tmp_path / "t.tsv", [row(9, "dog elephant", "A"), row(1000009, "elephant dog", "B"), *ROWS[2:]])
    questions = mmbench.load_english(table, None)
    wordy = "The correct answer is B. Option A is a common mistake."
    scores = mmbench.MMBENCH.score(questions, ["A dog is what I see."] * 2 + [wordy] * 2, table)
    assert scores["accuracy_by_category", "object"].value == 1
    assert scores["answers_that_name_no_option",].value == 0.5


def test_the_judge_reads_answers_that_name_no_option(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is asked about those answers only; without it they are wrong."""
    texts = {7: "A", 1000007: "a feline", 8: "a pair", 1000008: "Z of them"}
    answers = write_lines(tmp_path / "a.jsonl", [{"question_id": i, "text": text} for i, text in texts.items()])
    common = ["mmbench", "--questions", str(table), "--answers", str(answers), "--output", str(tmp_path / "r.json")]
    common += ["--annotations", str(table)]
    assert main([*common, "--judge_inputs", str(tmp_path / "judge.jsonl")]) == 0
    asked = [json.loads(line) for line in (tmp_path / "judge.jsonl").read_text().splitlines()]
    assert [line["question_id"] for line in asked] == [1000007, 8, 1000008]
    ending = "Question: What is it?\nOptions:\nA. dog\nB. cat\nAnswer: a feline\nLetter: "
    assert asked[0]["text"].endswith(ending)
    replies = [{"question_id": line["question_id"], "content": "BBZ"[i]} for i, line in enumerate(asked)]
    judged = ["--judgements", str(write_lines(tmp_path / "replies.jsonl", replies))]
    found = []
    for arguments in (common, [*common, *judged]):
        assert main(arguments) == 0
        report = json.loads((tmp_path / "r.json").read_text())
        scores = report["scores"]
        found.append((report["judged"], scores["accuracy"], scores["answers_that_name_no_option"]))
    assert found == [(None, 0, 0.75), (3, 0.5, 0.25)]
    write_lines(tmp_path / "replies.jsonl", replies[:2])
    assert main([*common, *judged]) == 2
    assert "question id 1000008 has no answer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "columns", "sentence"),
    [
        (ROWS[:2], COLUMNS, "has no annotation for question id 8"),
        ([{**ROWS[0], "answer": ""}, *ROWS[1:]], COLUMNS, "index 7 has '' as its answer.*--submission"),
        (ROWS, [name for name in COLUMNS if name != "question"], "has no column 'question'"),
        ([{**ROWS[0], "index": "x"}, *ROWS[1:]], COLUMNS, "an index is 'x'"),
    ],
)
def test_mmbench_with_other_annotations(
    table: Path, tmp_path: Path, rows: list[dict[str, Any]], columns: list[str], sentence: str
) -> None:
    questions = mmbench.load_english(table, None)
    with pytest.raises(UserError, match=sentence):
        mmbench.MMBENCH.score(questions, ["A"] * 4, write_table(tmp_path / "other.tsv", rows, columns))


def test_mmbench_without_rotations_is_refused(tmp_path: Path) -> None:
    table = write_table(tmp_path / "single.tsv", ROWS[::2])
    with pytest.raises(UserError, match="has no rotations"):
        mmbench.MMBENCH.score(mmbench.load_english(table, None), ["A", "B"], table)


def test_mmbench_images_must_be_base64(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="image of index 7 is not base64"):
        mmbench.load_english(write_table(tmp_path / "bad.tsv", [{**ROWS[0], "image": "a.jpg"}]), None)


def test_mmbench_submission(table: Path, tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    mmbench.write_submission(
        table, mmbench.load_english(table, None), ["A", "B", "C", "D"], tmp_path / "new" / "s.xlsx"
    )
    sheet = openpyxl.load_workbook(tmp_path / "new" / "s.xlsx").active
    heading, first, *_ = sheet.iter_rows(values_only=True)
    assert heading == ("index", "question", "A", "B", "C", "D", "prediction", "answer")
    assert first == (7, "What is it?", "cat", "dog", None, None, "A", "A")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(C).", "C"),
        ("The answer is B: a cat", "B"),
        ("it is a Cat", "B"),
        ("a dog or a cat", None),
        ("A or B", None),
        ("E", None),
        ("", None),
        ("a cat " * 9, None),
        ("A cat is what I see", "B"),  # an article
        ("**B**", "B"),
        ("B and this is why", None),  # five words from the end
        ("Cannot determine the answer, B", None),
        ("Z", None),
    ],
)
def test_matched_option(text: str, letter: str | None) -> None:
    assert mmbench.matched_option(text, {"A": "dog", "B": "cat", "C": "bird"}) == letter
