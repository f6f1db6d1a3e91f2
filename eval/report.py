"""A benchmark's report: scores with confidence intervals, and the floors beside them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from eval.answers import Answer, match_answers, read_answers
from eval.benchmarks import find_benchmark
from eval.protocol import Scores
from sparse_vlm.errors import UserError


def make_report(
    benchmark_name: str,
    answers: Path,
    *,
    questions: Path | None = None,
    annotations: Path | None = None,
    no_image_answers: Path | None = None,
) -> dict[str, Any]:
    """Scores an answers file.

    Args:
        benchmark_name: see eval/benchmarks.py.
        answers: LLaVA's format, complete, of any model.
        questions, annotations: official files; None: the benchmark's default, where it has one.
        no_image_answers: the same model's answers of `generate --no-image`.

    Returns:
        the content of report.json: "benchmark", "protocol", "model_id", "image" (False: answered without the images),
        "questions" (their number), "scores" (nested names), and with the same names inside "counts" (questions behind
        a score), "confidence_95" ([low, high]) and each of "floors".

    Raises:
        UserError: unknown benchmark, answers that do not fit its questions, annotations that do not fit.
    """
    benchmark = find_benchmark(benchmark_name)
    asked = benchmark.load_questions(questions, None)
    given = read_answers(answers)
    scores = benchmark.score(asked, match_answers(given, asked, answers), annotations)
    floors = dict(benchmark.floors(asked, annotations))
    if no_image_answers is not None:
        blind = read_answers(no_image_answers)
        if any(answer.metadata.get("image") is not False for answer in blind):
            raise UserError(f"{no_image_answers} was not made by `python -m eval.generate --no-image`.")
        floors["no_image"] = match_answers(blind, asked, no_image_answers)
    return {
        "benchmark": benchmark_name,
        "protocol": benchmark.PROTOCOL,
        "model_id": _model_id(given, answers),
        "image": all(answer.metadata.get("image", True) for answer in given),
        "questions": len(asked),
        "scores": _nest({path: score.value for path, score in scores.items()}),
        "counts": _nest({path: score.count for path, score in scores.items()}),
        "confidence_95": _nest({path: list(score.interval) for path, score in scores.items()}),
        "floors": {
            name: _values(benchmark.score(asked, predictions, annotations)) for name, predictions in floors.items()
        },
    }


def _model_id(answers: list[Answer], path: Path) -> str:
    ids = sorted({answer.model_id for answer in answers})
    if len(ids) > 1:
        raise UserError(f"{path} holds answers of several models: {', '.join(ids)}.")
    return ids[0]


def _values(scores: Scores) -> dict[str, Any]:
    return _nest({path: score.value for path, score in scores.items()})


def _nest(values: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """{("a", "b"): 1} -> {"a": {"b": 1}}"""
    nested: dict[str, Any] = {}
    for path, value in values.items():
        inner = nested
        for name in path[:-1]:
            inner = inner.setdefault(name, {})
        inner[path[-1]] = value
    return nested


def _flatten(nested: Mapping[str, Any]) -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a: b": 1}"""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}: {inner}": leaf for inner, leaf in _flatten(value).items()}
        else:
            flat[name] = value
    return flat


def table_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """The report as rows of text, the first one the heading: score, questions, value, interval, each floor."""
    counts, intervals = _flatten(report["counts"]), _flatten(report["confidence_95"])
    floors = {name: _flatten(values) for name, values in report["floors"].items()}
    heading = ["score", "questions", "model" if report["image"] else "model without images", "95% interval"]
    rows = [[*heading, *(f"floor: {name}" for name in floors)]]
    for name, value in _flatten(report["scores"]).items():
        low, high = intervals[name]
        row = [name, str(counts[name]), _number(value), f"{_number(low)} – {_number(high)}"]
        rows.append(row + [_number(floor[name]) for floor in floors.values()])
    return rows


def _number(value: float) -> str:
    """Shares as percentages; scores on a scale of their own as they are."""
    return f"{value:.2%}" if value <= 1 else f"{value:.2f}"


def as_markdown(report: Mapping[str, Any]) -> str:
    """The report as a Markdown table under its protocol line."""
    heading, *rows = table_rows(report)
    ruler = ["---", *["---:"] * (len(heading) - 1)]
    lines = ["| " + " | ".join(row) + " |" for row in (heading, ruler, *rows)]
    return f"{report['protocol']}.\n\n" + "\n".join(lines) + "\n"


def as_table(report: Mapping[str, Any]) -> Table:
    """The report for a terminal."""
    heading, *rows = table_rows(report)
    table = Table(title=f"{report['benchmark']}: {report['model_id']}", caption=report["protocol"])
    for column, name in enumerate(heading):
        table.add_column(name, justify="right" if column else "left")
    for row in rows:
        table.add_row(*row)
    return table
