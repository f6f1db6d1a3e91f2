"""Reports of any benchmark: unreadable answers, parts, results for each question, several benchmarks."""

import json
from pathlib import Path
from typing import Any

import pytest

from eval.report import make_report
from eval.score import main
from tests.eval.benchmarks.anchors import write_json, write_lines
from tests.eval.benchmarks.test_damaged_files import FILES, write
from tests.eval.benchmarks.test_mmbench import ROWS, write_table

READABLE = {"scienceqa": "A", "pope": "yes", "seed_bench": "A", "mme": "Yes", "mmbench": "A"}  # others: any words
UNREADABLE = {
    "scienceqa": "(A)",
    "pope": "I cannot see it",
    "seed_bench": "B. a",
    "mme": "A dog",
    "mmbench": "a pair of them",
}


def official(name: str, folder: Path) -> tuple[Path, Path, list[Any]]:
    """Write the files of a small benchmark; return question file, annotations, and the ids of the questions."""
    if name == "mmbench":
        table = write_table(folder / "mmbench.tsv", ROWS)
        return table, table, [row["index"] for row in ROWS]
    if name == "mme":
        (folder / "mme").mkdir()
        rows = [f"{i}.jpg\tIs it {word}? Please answer yes or no.\tYes\n" for i in "12" for word in ("a", "b")]
        (folder / "mme" / "count.txt").write_text("".join(rows))
        return folder / "mme", folder / "mme", [f"count/{i}.jpg" for i in "1122"]
    if name == "easy_vqa":
        file = write_json(folder / "easy.json", [["what color is it?", "red", 0], ["what shape is it?", "circle", 0]])
        return file, file, [0, 1]
    questions, annotations, ids = FILES[name]
    write(folder / "q.json", questions, lines=name == "pope")
    for known, content in annotations.items():
        write(folder / known, content, lines=name == "pope")
    return folder / "q.json", folder if annotations else folder / "q.json", ids


@pytest.mark.parametrize("name", ["easy_vqa", "mme", "mmbench", *(name for name in FILES if name != "mm_vet")])
def test_unreadable_answers_are_counted(name: str, tmp_path: Path) -> None:
    questions, annotations, ids = official(name, tmp_path)
    texts = [UNREADABLE.get(name, " "), *[READABLE.get(name, "red")] * (len(ids) - 1)]
    prompts = [{}] * len(ids)
    if name == "mme":
        prompts = [{"prompt": f"Is it {word}?"} for word in "abab"]
    lines = [{"question_id": id_, "text": t} | prompt for id_, t, prompt in zip(ids, texts, prompts, strict=True)]
    answers = write_lines(tmp_path / "answers.jsonl", lines)
    report = make_report(name, answers, questions=questions, annotations=annotations)
    assert report["unreadable"] == 1
    counted = '"yes"' if name == "pope" else "wrong"
    assert f"; 1 of {len(ids)} answers could not be read and count as {counted}" in report["protocol"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_table(tmp_path / "mmbench.tsv", ROWS)


def arguments(table: Path, answers: Path, *more: str) -> list[str]:
    return ["mmbench", "--questions", str(table), "--answers", str(answers), *more]


@pytest.mark.parametrize(
    ("ids", "more", "scored"),
    [
        ([7, 1000007], ["--part"], 2),
        ([7, 1000007], ["--limit", "1"], 2),  # with its rotation
        ([7, 1000007, 8, 1000008], ["--limit", "2"], 2),
        ([7, 1000007, 8, 1000008], ["--part"], 4),
        ([7, 1000007, 8, 1000008], ["--limit", "3"], 4),
    ],
)
def test_a_part_of_a_benchmark(table: Path, tmp_path: Path, ids: list[int], more: list[str], scored: int) -> None:
    right = {row["index"]: row["answer"] for row in ROWS}
    answers = write_lines(tmp_path / "a.jsonl", [{"question_id": id_, "text": right[id_]} for id_ in ids])
    assert main(arguments(table, answers, "--output", str(tmp_path / "r.json"), *more)) == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["questions"], report["questions_in_benchmark"]) == (scored, 4)
    assert report["scores"]["accuracy"] == 1
    part = scored < 4
    assert (f"a part of the benchmark, {scored} of 4 questions" in report["protocol"]) is part
    assert (report["published"]["ours"] is None) is part  # a part is not comparable with published scores


@pytest.mark.parametrize(
    ("ids", "more", "sentence"),
    [
        (
            [7, 1000007],
            [],
            "question id 8 has no answer (2 such ids in all). Answer them, or score the rest with --part",
        ),
        ([7, 1000007, 8], ["--part"], "no answer to question id 1000008"),
        ([], ["--part"], "answers none of the 4 questions"),
        ([7], ["--limit", "1"], "question id 1000007 has no answer"),
        ([7, 1000007], ["--limit", "0"], "--limit must be 1 or more, got 0"),
        ([9], ["--part"], "question id 9 is not among"),
        ([7, 1000007], ["--part", "--submission", "s.xlsx"], "The server takes answers to all 4 questions"),
    ],
)
def test_a_part_that_cannot_be_scored(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ids: list[int], more: list[str], sentence: str
) -> None:
    answers = write_lines(tmp_path / "a.jsonl", [{"question_id": id_, "text": "A"} for id_ in ids])
    assert main(arguments(table, answers, *more)) == 2
    assert sentence in capsys.readouterr().err


def test_results_of_each_question(table: Path, tmp_path: Path) -> None:
    answers = write_lines(
        tmp_path / "a.jsonl",
        [{"question_id": row["index"], "text": text} for row, text in zip(ROWS, ["A", "A", "?", "A"], strict=True)],
    )
    assert main(arguments(table, answers, "--output", str(tmp_path / "r.json"))) == 0
    results = [json.loads(line) for line in (tmp_path / "r.results.jsonl").read_text().splitlines()]
    found = [(line["question_id"], line["read"], line["right_answer"], line["credit"]) for line in results]
    assert found == [(7, "A", "A", 1), (1000007, "A", "B", 0), (8, None, "B", 0), (1000008, "A", "A", 1)]
    assert results[0]["prompt"].startswith("An animal.\nWhat is it?")


def test_several_benchmarks_in_one_command(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pope").mkdir()
    pope, coco, ids = official("pope", tmp_path / "pope")
    (tmp_path / "runs").mkdir()
    write_lines(tmp_path / "runs" / "pope.jsonl", [{"question_id": id_, "text": "yes"} for id_ in ids])
    write_lines(tmp_path / "runs" / "mmbench.jsonl", [{"question_id": row["index"], "text": "A"} for row in ROWS])
    command = ["mmbench,pope", "--questions", f"mmbench={table}", "--questions", f"pope={pope}"]
    command += ["--annotations", f"pope={coco}", "--answers", str(tmp_path / "runs")]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "pope.json").read_text())["scores"]["random"]["accuracy"] == 1
    assert json.loads((tmp_path / "out" / "mmbench.json").read_text())["scores"]["accuracy"] == 0
    printed = capsys.readouterr().out
    assert "mmbench:" in printed
    assert "pope:" in printed
    for wrong, sentence in (
        (["--questions", f"gqa={pope}"], "gqa is not one of the chosen benchmarks"),
        (["--questions", f"pope={table}"], "--questions was given twice"),
        (["--answers", f"pope={tmp_path / 'absent.jsonl'}"], "absent.jsonl"),
    ):
        assert main([*command, *wrong]) == 2
        assert sentence in capsys.readouterr().err
