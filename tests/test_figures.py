"""Curves and bars, drawn by real matplotlib."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from sparse_vlm.figures import accuracy_figure, alignment_figure, loss_figure, save_figure


def test_loss_figure_draws_logged_and_smoothed_values() -> None:
    losses = [5.0, 3.0, 1.0, 1.0]
    log = [{"step": 10 * i, "loss": loss, "lr": 1e-3} for i, loss in enumerate(losses)]
    figure = loss_figure({"align": log, "instruct": log[:1]}, smoothing=2)
    raw, smooth = figure.axes[0].lines
    assert np.asarray(raw.get_xdata()).tolist() == [0, 10, 20, 30]
    assert np.asarray(raw.get_ydata()).tolist() == losses
    assert np.asarray(smooth.get_ydata()).tolist() == [5, 4, 2, 1]
    assert [axes.get_title() for axes in figure.axes] == ["align", "instruct"]


def test_alignment_figure_keeps_training_and_held_out_apart() -> None:
    log = [{"step": step, "loss": 1.0 / step, "cosine": 1 - 1.0 / step} for step in (1, 2, 4)]
    figure = alignment_figure([*log[:2], {"step": 2, "eval_cosine": 0.4}, log[2], {"step": 4, "eval_cosine": 0.7}])
    loss, cosine = figure.axes
    assert np.asarray(loss.lines[0].get_ydata()).tolist() == [1.0, 0.5, 0.25]
    assert np.asarray(cosine.lines[0].get_ydata()).tolist() == [0.0, 0.5, 0.75]
    assert np.asarray(cosine.lines[2].get_xydata()).tolist() == [[2, 0.4], [4, 0.7]]
    assert len(alignment_figure(log).axes[1].lines) == 2


def test_accuracy_figure_has_a_bar_for_every_number() -> None:
    bars = {"model": {"all": 0.97, "shape": 1.0}, "no image": {"all": 0.6, "shape": 0.3}}
    figure = accuracy_figure(bars)
    heights = [round(patch.get_height(), 6) for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    assert heights == [97, 100, 60, 30]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["all", "shape"]


def test_save_figure_leaves_nothing_when_it_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not supported"):
        save_figure(accuracy_figure({"model": {"all": 1.0}}), tmp_path / "figure.unknown")
    assert list(tmp_path.iterdir()) == []


def test_alignment_figure_has_a_curve_for_each_number_of_tokens() -> None:
    log = [{"step": 1, "loss": 1.0, "cosine": 0.5}, {"step": 1, "eval_cosine": 0.4, "eval_cosine_4_tokens": 0.3}]
    legend = alignment_figure(log).axes[1].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["held out", "held out, 4 tokens"]
