"""MMBench and SEED-Bench: official files, circular scoring, submissions."""

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eval.benchmarks import mmbench, seed_bench
from eval.score import main
from eval.scoring.llava_format import OPTION_LETTER
from eval.scoring.protocol import EncodedImage, Question
from sparse_vlm.errors import UserError
from tests.eval.benchmarks.anchors import write_json, write_lines

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
    assert images[0] == images[1]  # the rotation names the row that has the picture
    assert [question.id for question in questions] == [7, 1000007, 8, 1000008]


def test_mmbench_is_circular(table: Path) -> None:
    questions = mmbench.load_english(table, None)
    scores = mmbench.score(questions, ["A", "B. cat", "(B)", "three"], table)
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
    scores = mmbench.score(questions, ["A", "B", "I see no picture", "E"], table)
    assert scores["answers_that_name_no_option",].value == 0.5
    always = mmbench.floors(questions, table)
    assert always == {"always A": ["A"] * 4}
    assert mmbench.score(questions, always["always A"], table)["accuracy",].value == 0


@pytest.mark.parametrize("kind", ["mark", "blank", "returns"])
def test_mmbench_tables_of_other_editors(table: Path, kind: str) -> None:
    """A byte order mark, a blank last line, Windows' line ends and Unix'."""
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
    """The letter of an option counts near the answer's end alone: "A dog" in every rotation is a dog, not A."""
    table = write_table(tmp_path / "t.tsv", [row(9, "dog elephant", "A"), row(1000009, "elephant dog", "B"), *ROWS[2:]])
    questions = mmbench.load_english(table, None)
    wordy = "The correct answer is B. Option A is a common mistake."
    scores = mmbench.score(questions, ["A dog is what I see."] * 2 + [wordy] * 2, table)
    assert scores["accuracy_by_category", "object"].value == 1
    assert scores["answers_that_name_no_option",].value == 0.5


def test_mmbenchs_judge_reads_what_names_no_option(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is asked about those answers alone; without it they are wrong."""
    texts = {7: "A", 1000007: "a feline", 8: "a pair", 1000008: "Z of them"}
    answers = write_lines(tmp_path / "a.jsonl", [{"question_id": i, "text": text} for i, text in texts.items()])
    common = ["mmbench", "--questions", str(table), "--answers", str(answers), "--output", str(tmp_path / "r.json")]
    common += ["--annotations", str(table)]
    assert main([*common, "--judge-inputs", str(tmp_path / "judge.jsonl")]) == 0
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
        mmbench.score(questions, ["A"] * 4, write_table(tmp_path / "other.tsv", rows, columns))


def test_mmbench_without_rotations_is_refused(tmp_path: Path) -> None:
    table = write_table(tmp_path / "single.tsv", ROWS[::2])
    with pytest.raises(UserError, match="has no rotations"):
        mmbench.score(mmbench.load_english(table, None), ["A", "B"], table)


def test_mmbench_pictures_must_be_base64(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="picture of index 7 is not base64"):
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


SEED = {
    "question_type": {"Scene Understanding": 1, "Action Recognition": 10},
    "questions": [
        {
            "question_id": "101669",
            "question": "Where?",
            "data_id": "1_2",
            "data_type": "image",
            "question_type_id": 1,
            "answer": "B",
            **{f"choice_{letter}": f"place {letter}" for letter in "abcd"},
        },
        {"question_id": "v9", "data_id": "9.mp4", "data_type": "video", "question_type_id": 10, "answer": "A"},
    ],
}


def test_seed_bench(tmp_path: Path) -> None:
    official = write_json(tmp_path / "SEED-Bench.json", SEED)
    text = f"Where?\nA. place a\nB. place b\nC. place c\nD. place d\n{OPTION_LETTER}"
    pictures = seed_bench.load_questions(official, Path("images"))
    assert pictures == [Question("101669", text, Path("images/1_2"))]
    assert seed_bench.score(pictures, ["B"], official)["accuracy",].value == 1  # all pictures, no videos: allowed
    lines = [{"question_id": 101669, "image": "a", "text": text}, {"question_id": "v9", "image": "b", "text": "What?"}]
    questions = seed_bench.load_questions(write_lines(tmp_path / "llava.jsonl", lines), None)
    scores = seed_bench.score(questions, ["B.", "A"], official)
    assert {path: score.value for path, score in scores.items()} == {
        ("accuracy",): 0.5,
        ("accuracy_by_medium", "image"): 0,  # "B." is not "B" to the official scorer
        ("accuracy_by_medium", "video"): 1,
        ("accuracy_by_type", "Action Recognition"): 1,
        ("accuracy_by_type", "Scene Understanding"): 0,
    }
    seed_bench.write_submission(None, questions, ["B", "A"], tmp_path / "s.jsonl")
    lines_written = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert lines_written == [{"question_id": "101669", "prediction": "B"}, {"question_id": "v9", "prediction": "A"}]
    more = SEED | {"questions": [*SEED["questions"], {"question_id": "5", "data_type": "image"}]}
    assert seed_bench.score(questions, ["B", "A"], tmp_path)["accuracy",].value == 1  # the folder of SEED-Bench.json
    with pytest.raises(UserError, match=r"annotates 1 questions that were not asked, e\.g\. '5'"):
        seed_bench.score(questions, ["B", "A"], write_json(tmp_path / "more.json", more))
