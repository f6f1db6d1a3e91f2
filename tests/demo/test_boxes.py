"""Boxes from clicks and from attention."""

import pytest
import torch
from PIL import Image

from demo.boxes import CELLS, attended_box, box_of_corners, draw_box, draw_corner
from sparse_vlm.encoder.rois import lay_out_rois
from sparse_vlm.encoder.runtime.sampling_steps import spread_over_rois
from sparse_vlm.errors import UserError


@pytest.mark.parametrize("corners", [((10, 20), (30, 60)), ((30, 60), (10, 20)), ((10, 60), (30, 20))])
def test_any_two_opposite_corners_give_the_box(corners: tuple[tuple[float, float], tuple[float, float]]) -> None:
    assert box_of_corners(*corners, (100, 80)) == (0.1, 0.25, 0.3, 0.75)


def test_boxes_without_area_and_corners_outside_are_refused() -> None:
    for second in ((10, 20), (10, 60), (30, 20)):
        with pytest.raises(UserError, match="no area"):
            box_of_corners((10, 20), second, (100, 80))
    for outside in ((-1, 5), (5, 81), (101, 5), (float("nan"), 5)):
        with pytest.raises(UserError, match="outside the image"):
            box_of_corners((10, 20), outside, (100, 80))


def test_attention_to_one_token_gives_a_box_in_its_roi() -> None:
    rois = lay_out_rois(16)
    weights = torch.full((16,), 0.001)
    weights[6] = 0.5  # the second row, the third column
    left, top, right, bottom = attended_box(rois, weights)
    assert 0.5 <= left < right <= 0.75
    assert 0.25 <= top < bottom <= 0.5
    assert attended_box(rois, torch.eye(16)[6], share=1.0) == (0.5, 0.25, 0.75, 0.5)


def test_no_smaller_box_holds_half_of_the_attention() -> None:
    generator = torch.Generator().manual_seed(0)
    centers, sizes = torch.rand(9, 2, generator=generator), 0.1 + 0.4 * torch.rand(9, 2, generator=generator)
    rois = torch.cat([centers - sizes / 2, centers + sizes / 2], dim=1)  # some leave the image
    weights = torch.rand(9, generator=generator) ** 4
    heat = spread_over_rois(rois, weights, CELLS)
    edges = [round(side * CELLS) for side in attended_box(rois, weights)]

    def held(x1: int, y1: int, x2: int, y2: int) -> float:
        return float(heat[y1:y2, x1:x2].sum() / heat.sum())

    assert held(*edges) >= 0.5 - 1e-6
    area = (edges[2] - edges[0]) * (edges[3] - edges[1])
    corners = range(CELLS)
    for x1 in corners:
        for y1 in corners:
            for x2 in range(x1 + 1, CELLS + 1):
                for y2 in range(y1 + 1, CELLS + 1):
                    if (x2 - x1) * (y2 - y1) < area:
                        assert held(x1, y1, x2, y2) < 0.5


def test_attention_outside_the_image_gives_no_box() -> None:
    with pytest.raises(UserError, match="no place in the image"):
        attended_box(torch.tensor([[1.5, 0.0, 2.0, 1.0]]), torch.ones(1))
    with pytest.raises(UserError, match="no place in the image"):
        attended_box(lay_out_rois(4), torch.zeros(4))


def test_a_box_and_a_corner_are_drawn_in_their_places() -> None:
    image = Image.new("RGB", (200, 100), "red")
    boxed = draw_box(image, (0.25, 0.2, 0.75, 0.8))
    assert boxed.getpixel((50, 50)) == (0, 0, 0)
    assert boxed.getpixel((100, 20)) == (0, 0, 0)
    assert boxed.getpixel((100, 50)) == (255, 0, 0)
    assert draw_corner(image, (30, 40)).getpixel((30, 40)) == (0, 0, 0)
    assert image.getpixel((30, 40)) == (255, 0, 0)  # the image itself is unchanged
    draw_box(Image.new("RGB", (1, 1)), (0, 0, 1, 1))
