"""Drawings over images, by a real encoder and real matplotlib."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from PIL import Image

from sparse_vlm.draw import MARGIN, SIDE, draw_heat, draw_sampling_steps, roi_figure, to_image_coordinates
from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.runtime.sampling_steps import SamplingStep, nearest_token, record_sampling_steps
from sparse_vlm.errors import UserError
from sparse_vlm.figures import save_figure

WHITE = np.ones((8, 8, 3), dtype=np.float32)


def test_roi_figure_shows_every_image_at_every_step(
    moving_encoder: SparseFormer, shapes: list[Image.Image], tmp_path: Path
) -> None:
    figure = roi_figure(moving_encoder, shapes)
    assert len(figure.axes) == 3 * 3
    images = torch.stack([moving_encoder.transform(image) for image in shapes])
    last = record_sampling_steps(moving_encoder, images)[-1].rois
    drawn = [patch for patch in figure.axes[8].patches if isinstance(patch, Rectangle)]  # third image, third step
    corners = [(p.get_x(), p.get_y(), p.get_x() + p.get_width(), p.get_y() + p.get_height()) for p in drawn]
    np.testing.assert_allclose(corners, last[2].numpy(), atol=1e-6)
    assert len({to_hex(patch.get_edgecolor()) for patch in drawn}) == 6
    shown = np.asarray(figure.axes[6].images[0].get_array(), dtype=float)  # 64-pixel images are not resized
    np.testing.assert_allclose(shown, np.asarray(shapes[2], dtype=float) / 255, atol=1e-6)
    save_figure(figure, tmp_path / "deep" / "rois.png")
    assert matplotlib.image.imread(tmp_path / "deep" / "rois.png").std() > 0.1
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["rois.png"]


def test_roi_figure_draws_a_readable_number_of_tokens(tiny_encoder: SparseFormer) -> None:
    figure = roi_figure(tiny_encoder, [Image.new("RGB", (100, 30), "red")], max_tokens=4)
    assert {len(axes.patches) for axes in figure.axes} == {4}


def test_a_click_chooses_the_nearest_token() -> None:
    """The center of a drawing is the image's center; its corner is the margin's corner."""
    square, wide = np.zeros((8, 8, 3), np.float32), np.zeros((8, 16, 3), np.float32)
    assert to_image_coordinates(square, SIDE / 2, SIDE / 2) == (0.5, 0.5)
    assert to_image_coordinates(square, 0, SIDE) == (-MARGIN, 1 + MARGIN)
    assert to_image_coordinates(wide, SIDE, SIDE / 4) == (1 + MARGIN, 0.5)
    rois = torch.tensor([[0.0, 0.0, 0.2, 0.2], [0.4, 0.4, 0.6, 0.6]])
    assert nearest_token(rois, *to_image_coordinates(square, SIDE / 2, SIDE / 2)) == 1
    assert nearest_token(rois, 0.0, 0.0) == 0


def test_a_roi_is_drawn_at_its_coordinates() -> None:
    rois = torch.tensor([[[0.25, 0.25, 0.75, 0.75], [0.0, 0.0, 0.1, 0.1]]])
    step = SamplingStep(rois, rois[..., :2].unsqueeze(2) + 0.125)
    drawn = np.asarray(draw_sampling_steps(WHITE, [step], 0, [0], points=False).convert("RGB"))
    assert drawn.shape == (SIDE, SIDE, 3)
    rows, columns = np.nonzero((drawn < 200).any(axis=-1))
    edges = [(value + MARGIN) / (1 + 2 * MARGIN) * SIDE for value in (0.25, 0.75)]
    assert [rows.min(), rows.max(), columns.min(), columns.max()] == pytest.approx([*edges, *edges], abs=3)
    with_points = np.asarray(draw_sampling_steps(WHITE, [step], 0, [0]).convert("RGB"))
    assert (with_points != drawn).any()
    assert np.asarray(draw_sampling_steps(WHITE, [step], 0, [0]))[0, 0, 3] == 0  # the margin is transparent
    by_step = np.asarray(draw_sampling_steps(WHITE, [step, step], 0, [0], colour_by="step").convert("RGB"))
    assert (by_step != with_points).any()


def test_boxes_are_outlined_at_their_coordinates() -> None:
    step = SamplingStep(torch.zeros(1, 1, 4), torch.zeros(1, 1, 0, 2))
    box = (0.25, 0.5, 0.75, 1.0)
    edges = [(value + MARGIN) / (1 + 2 * MARGIN) * SIDE for value in box]
    for drawn in (
        draw_sampling_steps(WHITE, [step], 0, [], boxes=[box]),
        draw_heat(WHITE, torch.zeros(4, 4), boxes=[box]),
    ):
        rows, columns = np.nonzero((np.asarray(drawn.convert("L")) < 60) & (np.asarray(drawn)[..., 3] > 0))
        assert [columns.min(), rows.min(), columns.max(), rows.max()] == pytest.approx(edges, abs=4)


def test_errors_name_the_bad_choice() -> None:
    step = SamplingStep(torch.zeros(1, 2, 4), torch.zeros(1, 2, 1, 2))
    with pytest.raises(UserError, match=r"'stepp'.*'step'"):
        draw_sampling_steps(WHITE, [step], 0, [0], colour_by="stepp")
    with pytest.raises(UserError, match=r"0…1, got \[2\]"):
        draw_sampling_steps(WHITE, [step], 0, [2])


def test_the_hottest_cell_is_brightest() -> None:
    heat = torch.zeros(4, 4)
    heat[0, 0], heat[3, 3] = 1.0, 0.1
    drawn = np.asarray(draw_heat(np.zeros((8, 8, 3), dtype=np.float32), heat)).astype(int)
    near = int(SIDE * (0.05 + MARGIN) / (1 + 2 * MARGIN))
    assert drawn[near, near].sum() > drawn[-near, -near].sum() + 100
