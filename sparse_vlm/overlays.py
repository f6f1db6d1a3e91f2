"""One picture with what was looked at drawn over it, as an image: RoIs and sampling points, or heat."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from sparse_vlm.encoder.rois import to_center_size
from sparse_vlm.errors import UserError, unknown_choice
from sparse_vlm.visualize import Glance

SIDE = 600  # pixels of a drawing's longer side
MARGIN = 0.25  # of the picture's side, around it: RoIs may leave the picture
COLOURS = ("token", "step")


def covered_share(rois: Tensor) -> float:
    """Share of the picture that lies in at least one RoI, exactly: the RoIs' edges cut it into cells.

    Args:
        rois: float32[n, 4] in image coordinates.
    """
    inside = _ordered(rois).clamp(0, 1).double()
    xs, ys = (torch.unique(inside[:, axes]) for axes in ([0, 2], [1, 3]))
    in_columns = (inside[:, 0, None] <= xs[:-1]) & (xs[1:] <= inside[:, 2, None])
    in_rows = (inside[:, 1, None] <= ys[:-1]) & (ys[1:] <= inside[:, 3, None])
    covered = (in_rows[:, :, None] & in_columns[:, None, :]).any(dim=0)
    return float((covered * torch.outer(ys.diff(), xs.diff())).sum())


def spread_over_rois(rois: Tensor, weights: Tensor, cells: int = 128) -> Tensor:
    """Heat of a picture: each token's weight lies evenly over its RoI; what lies outside the picture is cut off.

    Args:
        rois: float32[n, 4] in image coordinates.
        weights: float32[n], e.g. attention to the tokens.
        cells: of a side of the result.

    Returns:
        float32[cells, cells], rows from the top. A cell's value is the weight in it, so that RoIs inside the picture
        give the sum of `weights`.
    """
    box = _ordered(rois)
    edges = torch.linspace(0, 1, cells + 1)
    size = (box[:, 2:] - box[:, :2]).clamp_min(1e-6)  # a RoI of no size still has a place
    covered = []
    for axis in (0, 1):
        low, high = box[:, axis, None], box[:, axis, None] + size[:, axis, None]
        overlap = torch.minimum(high, edges[1:]) - torch.maximum(low, edges[:-1])
        covered.append(overlap.clamp_min(0) / size[:, axis, None])
    columns, rows = covered
    return torch.einsum("n,ny,nx->yx", weights, rows, columns)


def _ordered(rois: Tensor) -> Tensor:
    """Mirrored RoIs (x2 < x1) as the area that they cover."""
    return torch.cat([torch.minimum(rois[:, :2], rois[:, 2:]), torch.maximum(rois[:, :2], rois[:, 2:])], dim=-1)


def draw_glances(
    picture: np.ndarray,
    glances: Sequence[Glance],
    index: int,
    tokens: Sequence[int],
    colour_by: str = "token",
    points: bool = True,
) -> Image.Image:
    """The RoIs of some tokens at one or more sampling steps.

    Args:
        picture: float32[H, W, 3] in [0, 1], what the encoder sees.
        glances: steps to draw, over each other.
        index: of the picture in the glances' batch.
        tokens: which ones are drawn.
        colour_by: "token": a colour for each of all n tokens; "step": for each of the glances.
        points: whether the sampling points are drawn as well.

    Raises:
        UserError: unknown `colour_by`, or a token that does not exist.
    """
    if colour_by not in COLOURS:
        raise unknown_choice("colouring", colour_by, COLOURS)
    count = glances[0].rois.shape[1]
    if not all(0 <= token < count for token in tokens):
        raise UserError(f"Tokens must lie in 0…{count - 1}, got {list(tokens)}.")
    figure, axes = _canvas(picture)
    by_token = colormaps["hsv"](np.linspace(0, 1, count, endpoint=False))
    by_step = colormaps["plasma"](np.linspace(0, 0.9, len(glances)))
    for step, glance in enumerate(glances):
        for token in tokens:
            colour = by_token[token] if colour_by == "token" else by_step[step]
            _draw_roi(axes, glance.rois[index, token], glance.points[index, token] if points else None, colour)
    return _rendered(figure)


def draw_heat(picture: np.ndarray, heat: Tensor) -> Image.Image:
    """Heat over a greyed picture; the hottest cell is always brightest.

    Args:
        picture: float32[H, W, 3] in [0, 1].
        heat: float32[cells, cells], not negative; see `spread_over_rois`.
    """
    figure, axes = _canvas(np.repeat(picture.mean(axis=-1, keepdims=True), 3, axis=-1))
    relative = (heat / heat.max().clamp_min(1e-12)).numpy()
    axes.imshow(
        colormaps["inferno"](relative), extent=(0, 1, 1, 0), alpha=0.15 + 0.7 * relative, interpolation="bilinear"
    )
    return _rendered(figure)


def to_image_coordinates(picture: np.ndarray, x: float, y: float) -> tuple[float, float]:
    """A pixel of a drawing of [H, W, 3] -> image coordinates."""
    width, height = _size(picture)
    return (1 + 2 * MARGIN) * x / width - MARGIN, (1 + 2 * MARGIN) * y / height - MARGIN


def nearest_token(rois: Tensor, x: float, y: float) -> int:
    """The token whose RoI's centre is nearest to a place. float32[n, 4], image coordinates -> index."""
    center, _ = to_center_size(rois)
    return int((center - torch.tensor([x, y])).square().sum(dim=-1).argmin())


def _size(picture: np.ndarray) -> tuple[int, int]:
    """Width and height in pixels of a drawing of [H, W, 3]."""
    height, width = picture.shape[:2]
    return round(SIDE * width / max(width, height)), round(SIDE * height / max(width, height))


def _canvas(picture: np.ndarray) -> tuple[Figure, Axes]:
    """A figure that is nothing but the image and its transparent margin."""
    width, height = _size(picture)
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor="none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(picture, extent=(0, 1, 1, 0), interpolation="nearest")
    axes.set(xlim=(-MARGIN, 1 + MARGIN), ylim=(1 + MARGIN, -MARGIN), aspect="auto")
    axes.set_axis_off()
    return figure, axes


def _draw_roi(axes: Axes, roi: Tensor, points: Tensor | None, colour: np.ndarray) -> None:
    x1, y1, x2, y2 = roi.tolist()
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=1.5))
    if points is not None and len(points):
        axes.scatter(points[:, 0], points[:, 1], color=colour, s=9, linewidths=0)


def _rendered(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba()))
