"""Draw accuracy against visual tokens.

    python -m eval.figure runs/gqa.json runs/pope.json --output figure.png

The figure has a panel for each benchmark of the reports. Published scores are dots, ours are stars, and scores without
any image are dashed lines.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.published import our_score, read_comparable
from sparse_vlm.command_line import CommandParser
from sparse_vlm.figures import check_figure, save_figure

LABELLED = 40  # letters of a method's name that fit


def token_figure(reports: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw published scores and ours against the visual tokens of an image, on a logarithmic axis.

    Args:
        reports: contents of report.json files; their benchmarks must be in eval/published.csv.

    Raises:
        UserError: a report without published scores beside it or without "visual_tokens".
    """
    panels: dict[str, list[Mapping[str, Any]]] = {}
    for report in reports:
        panels.setdefault(our_score(report)[0], []).append(report)
    figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
    for axes, (column, members) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        _draw(axes, members)
        axes.set(title=f"{column}\n{members[0]['published']['note']}", xlabel="visual tokens", ylabel=column)
        axes.title.set_fontsize(9)
    return figure


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


def _run(arguments: argparse.Namespace) -> None:
    check_figure("--output", arguments.output, arguments.reports)
    save_figure(token_figure([read_comparable(path) for path in arguments.reports]), arguments.output)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = CommandParser.of_module("eval.figure", __doc__)
    parser.add_argument("reports", type=Path, nargs="+", help="report.json files of eval.score")
    parser.add_argument("--output", type=Path, required=True, help="figure to write: .png, .svg or .pdf")
    return parser.run(_run, argv)


if __name__ == "__main__":
    sys.exit(main())
