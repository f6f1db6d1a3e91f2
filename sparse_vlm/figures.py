"""Curves and bars of measured values with matplotlib, and how a figure is saved (no pyplot: it has global state)."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparse_vlm.errors import UserError
from sparse_vlm.files import check_output_files, new_file

FORMATS = (".png", ".svg", ".pdf")


def loss_figure(logs: Mapping[str, Sequence[Mapping[str, float]]], smoothing: int = 10) -> Figure:
    """Draw loss curves side by side: the logged values (pale) and the mean of the last `smoothing` of them.

    Args:
        logs: name of the stage -> the lines of its log.jsonl; lines without "loss" are left out.
        smoothing: window in logged values; shorter at the start of a curve.
    """
    figure = Figure(figsize=(3.6 * len(logs), 2.8), layout="constrained")
    for axes, (name, lines) in zip(figure.subplots(1, len(logs), squeeze=False)[0], logs.items(), strict=True):
        _draw_curve(axes, lines, "loss", smoothing, "tab:blue")
        axes.set(title=name, xlabel="step", ylabel="loss")
    return figure


def alignment_figure(lines: Sequence[Mapping[str, float]], smoothing: int = 10) -> Figure:
    """Draw loss and cosine of a bootstrapping run side by side: the logged values (pale) and their running mean.

    Args:
        lines: the lines of its log.jsonl; "loss" and "cosine" are those of training batches, "eval_cosine" (dots) that
            of held-out images, "eval_cosine_N_tokens" the same with N latent tokens.
        smoothing: window of the mean in logged values.
    """
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("loss", "cosine"), strict=True):
        _draw_curve(axes, lines, name, smoothing, "tab:blue")
        axes.set(xlabel="step", ylabel=name)
    names = dict.fromkeys(name for line in lines for name in line if name.startswith("eval_cosine"))
    for name in names:
        held_out = [(line["step"], line[name]) for line in lines if name in line]
        label = "held out" + name.removeprefix("eval_cosine").replace("_", ", ", 1).replace("_", " ")
        axes.plot(*zip(*held_out, strict=True), "o-", markersize=3, label=label)
    if names:
        axes.legend(fontsize=8)
    return figure


def _draw_curve(axes: Axes, lines: Sequence[Mapping[str, float]], name: str, smoothing: int, colour: str) -> None:
    """Draw the values of `name` and the mean of the last `smoothing` of them; lines without `name` are left out."""
    found = [line for line in lines if name in line]
    steps, values = [line["step"] for line in found], np.array([line[name] for line in found])
    means = [values[max(0, end - smoothing) : end].mean() for end in range(1, len(values) + 1)]
    axes.plot(steps, values, color=colour, alpha=0.25)
    axes.plot(steps, means, color=colour)


def accuracy_figure(
    bars: Mapping[str, Mapping[str, float]], intervals: Mapping[str, Mapping[str, Sequence[float]]] | None = None
) -> Figure:
    """Draw accuracies as grouped bars.

    Args:
        bars: series (e.g. "model", "no image") -> group (e.g. "all", "shape") -> accuracy in [0, 1]. All series have
            the same groups.
        intervals: series -> group -> low and high limit of the accuracy, for some series.
    """
    groups = list(next(iter(bars.values())))
    width = 0.8 / len(bars)
    figure = Figure(figsize=(1.6 * len(groups) + 2, 3), layout="constrained")
    axes = figure.subplots()
    for index, (name, values) in enumerate(bars.items()):
        places = np.arange(len(groups)) + (index - (len(bars) - 1) / 2) * width
        heights = [100 * values[group] for group in groups]
        known = (intervals or {}).get(name)
        errors = None if known is None else _error_lengths(heights, [known[group] for group in groups])
        drawn = axes.bar(places, heights, width, label=name, yerr=errors, error_kw={"elinewidth": 0.8})
        axes.bar_label(drawn, fmt="%.1f", fontsize=7)
    axes.set(ylabel="accuracy, %", ylim=(0, 105), xticks=np.arange(len(groups)), xticklabels=groups)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _error_lengths(heights: Sequence[float], limits: Sequence[Sequence[float]]) -> np.ndarray:
    """Return float[2, n], how far the limits (in [0, 1]) lie below and above the heights (in percent)."""
    low, high = 100 * np.array(limits).T
    return np.abs(np.stack([np.array(heights) - low, high - np.array(heights)]))


def check_figure(name: str, path: str | Path | None, inputs: Iterable[str | Path] = ()) -> None:
    """Check that a figure can be written, before long work.

    Args:
        name: the option that names the file, e.g. "--output".
        path: the file; None if no figure is wanted.
        inputs: files and folders that the figure must not replace.

    Raises:
        UserError: the file's ending is not .png, .svg or .pdf; see also `check_output_files`.
    """
    if path is not None and Path(path).suffix.lower() not in FORMATS:
        raise UserError(f"The ending of {path} must be one of {', '.join(FORMATS)}.")
    check_output_files({name: path}, inputs)


def save_figure(figure: Figure, path: str | Path, dpi: int = 150) -> None:
    """Write a figure atomically; the ending of `path` chooses the format (.png, .svg, .pdf).

    Raises:
        UserError: `path` cannot be written.
    """
    with new_file(path) as temporary:
        figure.savefig(temporary, dpi=dpi)
