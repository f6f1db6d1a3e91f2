"""Draw accuracy against the number of tokens from a CSV file with the columns panel, model, seed, tokens, accuracy.

Example:
    python docs/figures/token_counts.py docs/results/token_counts.csv --output docs/figures/token_counts.png
"""

import argparse
import csv
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure

from sparse_vlm.command_line import CommandParser, describe
from sparse_vlm.figures import check_figure, save_figure

Points = dict[int, list[float]]  # tokens -> the accuracy of each seed


def draw(arguments: argparse.Namespace) -> None:
    """Draw a panel per value of `panel` and a curve per model: the mean over the seeds, and each seed as a dot."""
    check_figure("--output", arguments.output, [arguments.table])
    panels: dict[str, dict[str, Points]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    with Path(arguments.table).open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            panels[row["panel"]][row["model"]][int(row["tokens"])].append(100 * float(row["accuracy"]))
    figure = Figure(figsize=(5.2 * len(panels), 3.8), layout="constrained")
    for axes, (panel, models) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for number, (model, points) in enumerate(models.items()):
            counts = sorted(points)
            axes.plot(counts, [mean(points[count]) for count in counts], color=f"C{number}", marker="o", label=model)
            dots = [(count, value) for count in counts for value in points[count]]
            axes.plot(*zip(*dots, strict=True), ".", color=f"C{number}", alpha=0.4)
        axes.set_xscale("log", base=2)
        ticks = sorted({count for points in models.values() for count in points})
        axes.set(xticks=ticks, xticklabels=ticks, xlabel="tokens", ylabel="accuracy, %", title=panel)
        axes.minorticks_off()
        axes.legend(fontsize=8)
    save_figure(figure, arguments.output)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, draw, and return the exit status."""
    parser = CommandParser("python docs/figures/token_counts.py", *describe(__doc__))
    parser.add_argument("table", help="the CSV file")
    parser.add_argument("--output", required=True, help="the figure to write: .png, .svg or .pdf")
    return parser.run(draw, argv)


if __name__ == "__main__":
    sys.exit(main())
