"""`python -m eval.figure report.json … --output figure.png`: accuracy against visual tokens.

A panel for each benchmark of the reports that has published scores: those as dots, ours as a star, the score without
any picture as a dashed line.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.scoring.records import field, read_json
from sparse_vlm.errors import UserError, exit_with_sentence
from sparse_vlm.figures import check_figure, save_figure

LABELLED = 40  # letters of a method's name that fit


def token_figure(reports: Sequence[Mapping[str, Any]]) -> Figure:
    """Published scores and ours against the visual tokens of a picture, on a logarithmic axis.

    Args:
        reports: contents of report.json of benchmarks that are in eval/published.csv, each with "visual_tokens".

    Raises:
        UserError: a report without either.
    """
    panels: dict[str, list[Mapping[str, Any]]] = {}
    for report in reports:
        panels.setdefault(_column(report), []).append(report)
    figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
    for axes, (column, members) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        _draw(axes, members)
        axes.set(title=f"{column}\n{members[0]['published']['note']}", xlabel="visual tokens", ylabel=column)
        axes.title.set_fontsize(9)
    return figure


def _column(report: Mapping[str, Any]) -> str:
    published = report.get("published")
    if published is None or published["ours"] is None:
        raise UserError(f"There are no published scores beside this report of {report.get('benchmark')!r}.")
    if report.get("image") and report.get("visual_tokens") is None:
        raise UserError(
            f"The report of {report.get('model_id')!r} on {report.get('benchmark')!r} does not say how many visual "
            "tokens a picture has: its answers are not of `python -m eval.generate`."
        )
    return str(published["column"])


def _draw(axes: Axes, reports: Sequence[Mapping[str, Any]]) -> None:
    for row in reports[0]["published"]["rows"]:
        if row["tokens"]:
            axes.plot(row["tokens"], row["value"], "o", color="tab:gray", markersize=4)
            axes.annotate(row["method"][:LABELLED], (row["tokens"], row["value"]), fontsize=5, color="tab:gray")
        else:
            axes.axhline(row["value"], color="tab:gray", linestyle="--", linewidth=0.8)
    for report in reports:
        ours = report["published"]["ours"]
        if report["image"]:
            axes.plot(report["visual_tokens"], ours, "*", color="tab:red", markersize=9)
            axes.annotate(report["model_id"][:LABELLED], (report["visual_tokens"], ours), fontsize=6, color="tab:red")
        else:
            axes.axhline(ours, color="tab:red", linestyle="--", linewidth=0.8)
    axes.set_xscale("log", base=2)


def build_parser() -> argparse.ArgumentParser:
    """The arguments of `python -m eval.figure`."""
    parser = argparse.ArgumentParser(prog="python -m eval.figure", description="Accuracy against visual tokens.")
    parser.add_argument("reports", type=Path, nargs="+", help="report.json files of eval.score")
    parser.add_argument("--output", type=Path, required=True, help="figure to write: .png, .svg or .pdf")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    check_figure("--output", arguments.output, arguments.reports)
    reports = [read_json(path) for path in arguments.reports]
    for path, report in zip(arguments.reports, reports, strict=True):
        field(report, "benchmark", str, str(path))
    save_figure(token_figure(reports), arguments.output)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    return exit_with_sentence(lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main())
