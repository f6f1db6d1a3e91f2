"""Boxes on an image, (x1, y1, x2, y2) with [0, 1] from edge to edge: from clicks, from attention, and drawn."""

from itertools import combinations

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from sparse_vlm.encoder.runtime.sampling_steps import spread_over_rois
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.views import Box

Place = tuple[float, float]  # x and y in pixels
CELLS = 16  # per side; the smallest attended box is a cell


def box_of_corners(first: Place, second: Place, size: tuple[int, int]) -> Box:
    """Return the box between two opposite corners, given in pixels of an image of `size` (width, height).

    Raises:
        UserError: a corner lies outside the image, or the box has no area.
    """
    corners = [check_place(place, size) for place in (first, second)]
    (left, right), (top, bottom) = (sorted(side) for side in zip(*corners, strict=True))
    if left == right or top == bottom:
        raise UserError("The box has no area: its two corners must differ in both directions.")
    width, height = size
    return left / width, top / height, right / width, bottom / height


def check_place(place: Place, size: tuple[int, int]) -> Place:
    """Return a place in an image of `size` (width, height).

    Raises:
        UserError: it lies outside.
    """
    if not all(0 <= value <= side for value, side in zip(place, size, strict=True)):
        raise UserError(f"A corner of the box lies outside the image: {place[0]:g}, {place[1]:g}. Click on the image.")
    return place


def attended_box(rois: Tensor, weights: Tensor, share: float = 0.5) -> Box:
    """Find the smallest box that holds a share of the attention. Source: ours.

    Each token's attention is spread evenly over its RoI, as it is drawn, in 16 × 16 cells of the image; what lies
    outside the image is left out. Of all boxes along the cells' edges that hold at least `share` of the rest, the
    smallest one is returned; of several, the one with the most attention.

    Args:
        rois: float32[n, 4] in image coordinates.
        weights: float32[n], the attention to each token.
        share: of the attention, in (0, 1].

    Raises:
        UserError: no attention lies in the image.
    """
    heat = spread_over_rois(rois, weights, CELLS).double()
    total = float(heat.sum())
    if not total > 0:
        raise UserError("The answer attended to no place in the image, so there is nothing to look at again.")
    sums = torch.zeros(CELLS + 1, CELLS + 1, dtype=torch.double)
    sums[1:, 1:] = heat.cumsum(0).cumsum(1)
    low, high = torch.tensor(list(combinations(range(CELLS + 1), 2))).unbind(1)
    columns = sums[:, high] - sums[:, low]
    held = columns[high] - columns[low]  # [rows, columns]: the attention in each box
    sides = high - low
    areas = torch.outer(sides, sides)
    enough = held >= share * total * (1 - 1e-9)  # rounding
    smallest = enough & (areas == areas[enough].min())
    row, column = divmod(int(held.masked_fill(~smallest, -1).argmax()), len(sides))
    left, top, right, bottom = (int(edge) / CELLS for edge in (low[column], low[row], high[column], high[row]))
    return left, top, right, bottom


def draw_box(image: Image.Image, box: Box) -> Image.Image:
    """Draw a box in black and white on a copy of an image."""
    drawn = image.copy()
    width, height = image.size
    edges = [round(side * length) for side, length in zip(box, (width - 1, height - 1) * 2, strict=True)]
    line = max(2, max(image.size) // 200)
    draw = ImageDraw.Draw(drawn)
    draw.rectangle([edges[0] - line, edges[1] - line, edges[2] + line, edges[3] + line], outline="white", width=line)
    draw.rectangle(edges, outline="black", width=line)
    return drawn


def draw_corner(image: Image.Image, place: Place) -> Image.Image:
    """Draw a cross in black and white on a copy of an image, in the place of a box's first corner."""
    drawn = image.copy()
    x, y = place
    arm = max(image.size) / 40
    draw = ImageDraw.Draw(drawn)
    for colour, width in (("white", 5), ("black", 2)):
        draw.line([x - arm, y, x + arm, y], colour, width)
        draw.line([x, y - arm, x, y + arm], colour, width)
    return drawn
