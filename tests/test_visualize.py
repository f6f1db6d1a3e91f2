"""The pictures are drawn by a real encoder and real matplotlib."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from PIL import Image

from sparse_vlm.data import easy_vqa
from sparse_vlm.encoder import SparseFormer
from sparse_vlm.image_files import open_image
from sparse_vlm.visualize import (
    accuracy_figure,
    alignment_figure,
    loss_figure,
    record_glances,
    roi_figure,
    save_figure,
)


@pytest.fixture
def moving_encoder(tiny_encoder: SparseFormer) -> SparseFormer:
    """An encoder whose RoIs move; at initialisation they stand still."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in tiny_encoder.named_parameters():
            if "adjustment.linear" in name:
                weight.normal_(std=1.0, generator=generator)
    return tiny_encoder


@pytest.fixture
def pictures() -> list[Image.Image]:
    folder = easy_vqa.split_folder("test") / "images"
    return [open_image(easy_vqa.image_path(folder, image_id)) for image_id in (0, 1, 2)]


def test_glances_are_where_the_encoder_samples(
    moving_encoder: SparseFormer, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same RoIs as `encoder(images).rois`, and the very points that reach the sampling of features."""
    from sparse_vlm.encoder import focusing

    sampled: list[torch.Tensor] = []
    sample_features = focusing.sample_features

    def watch(features: torch.Tensor, points: torch.Tensor, padding: str) -> torch.Tensor:
        sampled.append(points)
        return sample_features(features, points, padding)

    monkeypatch.setattr(focusing, "sample_features", watch)
    images = torch.stack([moving_encoder.transform(picture) for picture in pictures])
    glances = record_glances(moving_encoder, images)
    assert [tuple(glance.rois.shape) for glance in glances] == [(3, 6, 4)] * 3  # 2 repeats and the last unit
    for glance, points in zip(glances, sampled, strict=True):
        torch.testing.assert_close(glance.points, points)
    rois = moving_encoder(images).rois
    torch.testing.assert_close(glances[0].rois[1], moving_encoder.focus.initial_rois.weight.detach())
    torch.testing.assert_close(glances[1].rois, rois[0].detach())
    torch.testing.assert_close(glances[2].rois, rois[1].detach())
    assert (glances[2].rois - glances[0].rois).abs().max() > 0.01


def test_recording_leaves_no_hook_behind(tiny_encoder: SparseFormer) -> None:
    first = record_glances(tiny_encoder, torch.zeros(1, 3, 64, 64))
    tiny_encoder(torch.zeros(1, 3, 64, 64))
    assert len(first) == 3
    assert not any(module._forward_hooks for module in tiny_encoder.modules())


def test_roi_figure_shows_every_picture_at_every_step(
    moving_encoder: SparseFormer, pictures: list[Image.Image], tmp_path: Path
) -> None:
    figure = roi_figure(moving_encoder, pictures)
    assert len(figure.axes) == 3 * 3
    images = torch.stack([moving_encoder.transform(picture) for picture in pictures])
    last = record_glances(moving_encoder, images)[-1].rois
    drawn = [patch for patch in figure.axes[8].patches if isinstance(patch, Rectangle)]  # third picture, third step
    corners = [(p.get_x(), p.get_y(), p.get_x() + p.get_width(), p.get_y() + p.get_height()) for p in drawn]
    np.testing.assert_allclose(corners, last[2].numpy(), atol=1e-6)
    assert len({to_hex(patch.get_edgecolor()) for patch in drawn}) == 6
    shown = np.asarray(figure.axes[6].images[0].get_array(), dtype=float)  # 64-pixel pictures are seen as they are
    np.testing.assert_allclose(shown, np.asarray(pictures[2], dtype=float) / 255, atol=1e-6)
    save_figure(figure, tmp_path / "deep" / "rois.png")
    assert matplotlib.image.imread(tmp_path / "deep" / "rois.png").std() > 0.1
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["rois.png"]


def test_roi_figure_draws_a_readable_number_of_tokens(tiny_encoder: SparseFormer) -> None:
    figure = roi_figure(tiny_encoder, [Image.new("RGB", (100, 30), "red")], max_tokens=4)
    assert {len(axes.patches) for axes in figure.axes} == {4}


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
        save_figure(accuracy_figure({"model": {"all": 1.0}}), tmp_path / "picture.unknown")
    assert list(tmp_path.iterdir()) == []
