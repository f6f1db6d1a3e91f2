"""Geometry of what is drawn over a picture, and that it is drawn."""

import numpy as np
import pytest
import torch

from sparse_vlm.errors import UserError
from sparse_vlm.overlays import (
    MARGIN,
    SIDE,
    covered_share,
    draw_glances,
    draw_heat,
    nearest_token,
    spread_over_rois,
    to_image_coordinates,
)
from sparse_vlm.visualize import Glance

WHITE = np.ones((8, 8, 3), dtype=np.float32)


@pytest.mark.parametrize(
    ("rois", "share"),
    [
        ([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]], 0.5),
        ([[0, 0, 0.5, 0.5], [0.25, 0.25, 0.75, 0.75]], 7 / 16),
        ([[-1, -1, 2, 2]], 1),
        ([[0.5, 0.5, 0, 0]], 0.25),  # mirrored
        ([[1.2, 0, 1.5, 1], [0.3, 0.3, 0.3, 0.3]], 0),  # outside; a point
    ],
)
def test_the_covered_share_counts_overlaps_once(rois: list[list[float]], share: float) -> None:
    assert covered_share(torch.tensor(rois)) == pytest.approx(share, abs=1e-6)


def test_heat_keeps_the_weights_inside_the_picture() -> None:
    rois = torch.tensor([[0.1, 0.2, 0.4, 0.9], [0.35, 0.0, 0.85, 0.5], [0.8, 0.8, 1.2, 1.0]])
    heat = spread_over_rois(rois, torch.tensor([0.3, 0.5, 0.2]), cells=10)
    assert heat.sum() == pytest.approx(0.3 + 0.5 + 0.2 / 2)  # half of the third lies outside
    assert heat[0, 5] == pytest.approx(0.5 / 25)  # one of 5 × 5 cells
    assert heat[9, 0] == 0


def test_a_click_finds_its_token() -> None:
    """The middle of a drawing is the middle of the picture, its corner the margin's."""
    square, wide = np.zeros((8, 8, 3), np.float32), np.zeros((8, 16, 3), np.float32)
    assert to_image_coordinates(square, SIDE / 2, SIDE / 2) == (0.5, 0.5)
    assert to_image_coordinates(square, 0, SIDE) == (-MARGIN, 1 + MARGIN)
    assert to_image_coordinates(wide, SIDE, SIDE / 4) == (1 + MARGIN, 0.5)
    rois = torch.tensor([[0.0, 0.0, 0.2, 0.2], [0.4, 0.4, 0.6, 0.6]])
    assert nearest_token(rois, *to_image_coordinates(square, SIDE / 2, SIDE / 2)) == 1
    assert nearest_token(rois, 0.0, 0.0) == 0


def test_a_roi_is_drawn_where_it_lies() -> None:
    rois = torch.tensor([[[0.25, 0.25, 0.75, 0.75], [0.0, 0.0, 0.1, 0.1]]])
    glance = Glance(rois, rois[..., :2].unsqueeze(2) + 0.125)
    drawn = np.asarray(draw_glances(WHITE, [glance], 0, [0], points=False).convert("RGB"))
    assert drawn.shape == (SIDE, SIDE, 3)
    rows, columns = np.nonzero((drawn < 200).any(axis=-1))
    edges = [(value + MARGIN) / (1 + 2 * MARGIN) * SIDE for value in (0.25, 0.75)]
    assert [rows.min(), rows.max(), columns.min(), columns.max()] == pytest.approx([*edges, *edges], abs=3)
    with_points = np.asarray(draw_glances(WHITE, [glance], 0, [0]).convert("RGB"))
    assert (with_points != drawn).any()
    assert np.asarray(draw_glances(WHITE, [glance], 0, [0]))[0, 0, 3] == 0  # the margin is transparent
    by_step = np.asarray(draw_glances(WHITE, [glance, glance], 0, [0], colour_by="step").convert("RGB"))
    assert (by_step != with_points).any()


def test_bad_choices_are_named() -> None:
    glance = Glance(torch.zeros(1, 2, 4), torch.zeros(1, 2, 1, 2))
    with pytest.raises(UserError, match=r"'stepp'.*'step'"):
        draw_glances(WHITE, [glance], 0, [0], colour_by="stepp")
    with pytest.raises(UserError, match=r"0…1, got \[2\]"):
        draw_glances(WHITE, [glance], 0, [2])


def test_the_hottest_place_is_brightest() -> None:
    heat = torch.zeros(4, 4)
    heat[0, 0], heat[3, 3] = 1.0, 0.1
    drawn = np.asarray(draw_heat(np.zeros((8, 8, 3), dtype=np.float32), heat)).astype(int)
    near = int(SIDE * (0.05 + MARGIN) / (1 + 2 * MARGIN))
    assert drawn[near, near].sum() > drawn[-near, -near].sum() + 100
