"""The table of published scores: numbers with sources, and the same in README.md."""

import json
from pathlib import Path
from typing import Any

import pytest

from eval.published import NOTES, TABLE, comparison, main, published_scores
from tests.eval.benchmarks.anchors import write_json

README = Path(__file__).parents[2] / "README.md"


def test_the_published_table_is_numbers_with_sources() -> None:
    heading = TABLE.read_text(encoding="utf-8").split("\n")[0].split(",")
    assert heading == ["method", "tokens", *NOTES, "source"]
    rows = {column: published_scores(column) for column in NOTES}
    assert all(row.source for column in rows.values() for row in column)
    assert [row.value for row in rows["MME"]] == [1510.7, 1463, 1416, 1362, 1404]
    assert rows["GQA"][-1].tokens == 0


def test_the_table_in_the_readme_is_the_printed_one(capsys: pytest.CaptureFixture[str]) -> None:
    """To update it, replace the lines between both comments with the output of `python -m eval.published`."""
    assert main([]) == 0
    block = README.read_text(encoding="utf-8").split("<!-- published: begin -->\n")[1]
    assert block.split("<!-- published: end -->")[0] == capsys.readouterr().out


def test_every_score_is_in_the_table() -> None:
    lines = [line.strip("| ").split(" | ") for line in comparison().splitlines()]
    heading, body = lines[0], {cells[0]: cells for cells in lines[2:]}
    for column in NOTES:
        for row in published_scores(column):
            assert float(body[row.method][heading.index(column)]) == row.value
            assert (body[row.method][1], body[row.method][-1]) == (str(row.tokens), row.source)
    assert sum(cell == "–" for cells in body.values() for cell in cells) == len(body) * len(NOTES) - sum(
        len(published_scores(column)) for column in NOTES
    )


def report(column: str, ours: float | None, **changes: Any) -> dict[str, Any]:
    published = {"column": column, "note": "", "ours": ours, "rows": []}
    return {"benchmark": column, "model_id": "m", "image": True, "visual_tokens": 49, "published": published} | changes


def test_reports_add_a_row_for_each_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reports = [report("GQA", 58.46), report("MME", 1400), report("GQA", 37, image=False)]
    reports.append(report("GQA", 55, visual_tokens=16))
    files = [str(write_json(tmp_path / f"{i}.json", content)) for i, content in enumerate(reports)]
    assert main(files) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:5] == [
        "| **m** | 49 | – | 58.5 | – | – | 1400.0 | – | – | – | ours |",
        "| **m** | 0 | – | 37.0 | – | – | – | – | – | – | ours |",
        "| **m** | 16 | – | 55.0 | – | – | – | – | – | – | ours |",
    ]
    assert lines[5:] == comparison().splitlines()[2:]
    for content, sentence in (
        (report("GQA", None), "no published scores beside this report of 'GQA'"),
        (report("GQA", 50.0), "Two reports have a GQA score of 'm' with 49 tokens"),
        (report("GQA", None), "wrong.json: There are no published scores"),
        ({"benchmark": "easy_vqa", "published": None}, "wrong.json: There are no published scores beside this report"),
        (report("GQA", 50.0, visual_tokens=None), "wrong.json: The report of 'm' on 'GQA' does not say how many"),
        ({"a": 1}, '"benchmark" is missing'),
    ):
        wrong = tmp_path / "wrong.json"
        wrong.write_text(json.dumps(content))
        assert main([*files, str(wrong)]) == 2
        assert sentence in capsys.readouterr().err


def test_a_missing_report_is_not_called_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing, damaged = tmp_path / "missing.json", tmp_path / "damaged.json"
    assert main([str(missing)]) == 2
    assert capsys.readouterr().err == f"error: Cannot read {missing}: No such file or directory.\n"
    for content in ("{", "1" * 5000):  # Python converts no longer numbers
        damaged.write_text(content)
        assert main([str(damaged)]) == 2
        assert capsys.readouterr().err.startswith(f"error: {damaged} is not JSON (")
