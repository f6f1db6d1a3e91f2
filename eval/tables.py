"""Reports as tables, in Markdown and for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table  # Markdown tables do not need rich


def table_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Return the report as rows of text, the heading first: score, questions, value, interval, each floor."""
    counts, intervals = _flatten(report["counts"]), _flatten(report["confidence_95"])
    floors = {name: _flatten(values) for name, values in report["floors"].items()}
    heading = ["score", "questions", "model" if report["image"] else "model without images", "95% interval"]
    rows = [[*heading, *(f"floor: {name}" for name in floors)]]
    for name, value in _flatten(report["scores"]).items():
        scale = "points" if name in report["points"] else report["scale"]
        low, high, *rest = (
            _number(number, scale) for number in (*intervals[name], value, *(floor[name] for floor in floors.values()))
        )
        rows.append([name, str(counts[name]), rest[0], f"{low} – {high}", *rest[1:]])
    return rows


def published_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Return our score and the published ones as rows of text, the heading first; empty if there are none."""
    published = report["published"]
    if published is None or published["ours"] is None:
        return []
    tokens = report["visual_tokens"] if report["image"] else 0
    rows = [[row["method"], str(row["tokens"]), f"{row['value']:.1f}", row["source"]] for row in published["rows"]]
    ours = [f"**{report['model_id'] or 'this model'}**", "?" if tokens is None else str(tokens)]
    return [
        ["method", "visual tokens", published["column"], "source"],
        [*ours, f"{published['ours']:.1f}", "this report"],
        *rows,
    ]


def _flatten(nested: Mapping[str, Any]) -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a: b": 1}"""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}: {inner}": leaf for inner, leaf in _flatten(value).items()}
        else:
            flat[name] = value
    return flat


def _number(value: float, scale: str) -> str:
    """Format shares as percentages, and scores on their own scale as they are."""
    return f"{value:.2%}" if scale == "share" else f"{value:.2f}"


def percent(value: float | None, interval: Sequence[float] | None) -> str:
    """Format a share with its interval, in percent; empty if there is none."""
    shown = "" if value is None else f"{100 * value:.1f}"
    return shown if interval is None else f"{shown} ({100 * interval[0]:.1f} – {100 * interval[1]:.1f})"


def as_markdown(report: Mapping[str, Any]) -> str:
    """Return the report as Markdown tables under its protocol line."""
    parts = [f"{report['protocol']}.\n", markdown_table(table_rows(report))]
    published = published_rows(report)
    if published:
        parts += [
            f"Published, {report['published']['column']}: {report['published']['note']}.\n",
            markdown_table(published),
        ]
    return "\n".join(parts)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text, the heading first, as a Markdown table. All columns but the first are right-aligned."""
    heading, *body = rows
    ruler = ["---", *["---:"] * (len(heading) - 1)]
    return "".join("| " + " | ".join(row) + " |\n" for row in (heading, ruler, *body))


def as_tables(report: Mapping[str, Any]) -> list[Table]:
    """Return the report as tables for the terminal."""
    title = f"{report['benchmark']}: {report['model_id']}"
    tables = [rich_table(table_rows(report), title, report["protocol"])]
    published = published_rows(report)
    if published:
        note = f"{report['published']['column']}: {report['published']['note']}"
        tables.append(rich_table([[cell.strip("*") for cell in row] for row in published], "published", note))
    return tables


def rich_table(rows: Sequence[Sequence[str]], title: str, caption: str) -> Table:
    """Return rows of text, the heading first, as a table for the terminal."""
    from rich.table import Table

    heading, *body = rows
    table = Table(title=title, caption=caption)
    for column, name in enumerate(heading):
        table.add_column(name, justify="right" if column else "left", overflow="fold")  # a path is never cut off
    for row in body:
        table.add_row(*row)
    return table
