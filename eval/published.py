"""Print published scores as a Markdown table: one row per method, one column per benchmark.

    python -m eval.published
    python -m eval.published runs/gqa.json runs/pope.json

The scores are those of the LLaVA-1.5 recipe with Vicuna-7B and few visual tokens, from eval/published.csv. Reports of
eval.score on whole benchmarks add a row for each model.
"""

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from eval.scoring.records import Record, field, read_json
from eval.tables import markdown_table
from sparse_vlm.command_line import CommandParser
from sparse_vlm.errors import UserError, error_context

TABLE = Path(__file__).with_name("published.csv")
# the protocol behind each column
NOTES = {
    "VQAv2": "test-dev, scored by the server",
    "GQA": "testdev_balanced",
    "TextVQA": "val, with LLaVA's OCR hints unless noted",
    "POPE": "F1, mean of random, popular and adversarial",
    "MME": "perception",
    "MMB": "MMBench dev, English",
    "SQA-I": "ScienceQA test, questions with an image",
    "VizWiz": "test-dev, scored by the server",
}


@dataclass(frozen=True)
class PublishedScore:
    """One method's score, in percent or the benchmark's points."""

    method: str
    tokens: int
    value: float
    source: str


@cache
def _rows() -> list[dict[str, str]]:
    with TABLE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def published_scores(column: str) -> list[PublishedScore]:
    """Return the published scores of a benchmark, in the order of the file.

    Args:
        column: the benchmark's column of published.csv.
    """
    return [
        PublishedScore(row["method"], int(row["tokens"]), float(row[column]), row["source"])
        for row in _rows()
        if row[column]
    ]


def read_report(path: Path) -> Record:
    """Read a report of eval.score.

    Raises:
        UserError: no such file, or not a report.
    """
    report = read_json(path)
    field(report, "benchmark", str, str(path))
    return dict(report)


def read_comparable(path: Path) -> Record:
    """Read a report of eval.score that has a score beside published ones. Errors name its file.

    Raises:
        UserError: see `read_report` and `our_score`.
    """
    report = read_report(path)
    with error_context(str(path)):
        our_score(report)
    return report


def our_score(report: Mapping[str, Any]) -> tuple[str, float]:
    """Return the column of published.csv that a report belongs to, and its score in that column.

    Raises:
        UserError: no published scores exist for the report's benchmark, or it covers only a part of the benchmark.
    """
    published = report.get("published")
    if published is None or published["ours"] is None:
        raise UserError(f"There are no published scores beside this report of {report.get('benchmark')!r}.")
    if report.get("image") and report.get("visual_tokens") is None:
        raise UserError(
            f"The report of {report.get('model_id')!r} on {report.get('benchmark')!r} does not say how many visual "
            "tokens an image has: its answers were not written by `python -m eval.generate`."
        )
    return str(published["column"]), float(published["ours"])


def comparison(reports: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return all published scores as a Markdown table, preceded by the scores of `reports`, a row for each model.

    Raises:
        UserError: a report without published scores beside it, or two scores of one model on one benchmark.
    """
    ours: dict[tuple[str, int], dict[str, float]] = {}
    for report in reports:
        column, value = our_score(report)
        model = str(report["model_id"]), report["visual_tokens"] if report["image"] else 0
        if column in ours.setdefault(model, {}):
            raise UserError(f"Two reports have a {column} score of {model[0]!r} with {model[1]} tokens. Leave one out.")
        ours[model][column] = value
    rows = [
        {"method": f"**{name}**", "tokens": str(tokens), "source": "ours"}
        | {key: f"{scores[key]:.1f}" for key in scores}
        for (name, tokens), scores in ours.items()
    ]
    body = [[row.get(key) or "–" for key in ("method", "tokens", *NOTES, "source")] for row in (*rows, *_rows())]
    return markdown_table([["method", "visual tokens", *NOTES, "source"], *body])


def _run(arguments: argparse.Namespace) -> None:
    print(comparison([read_comparable(path) for path in arguments.reports]), end="")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = CommandParser.of_module("eval.published", __doc__)
    parser.add_argument("reports", type=Path, nargs="*", help="report.json files of eval.score")
    return parser.run(_run, argv)


if __name__ == "__main__":
    sys.exit(main())
