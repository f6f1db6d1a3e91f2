"""Drawings over an image with matplotlib: the RoIs and sampling points of an encoder, or a heat map."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.preprocessing import make_transform, remove_canvas
from sparse_vlm.encoder.runtime.sampling_steps import SamplingStep, record_sampling_steps
from sparse_vlm.errors import UserError, unknown_choice

SIDE = 600  # pixels of a drawing's longer side
MARGIN = 0.25  # around the image, relative to its side: RoIs may extend beyond the image
COLOURS = ("token", "step")


def roi_figure(
    encoder: SparseFormer,
    images: Sequence[Image.Image],
    max_tokens: int = 64,
    aspect: str = "crop",
    tokens: int | None = None,
) -> Figure:
    """Draw RoIs and sampling points: a row per image, a column per sampling step.

    A token has the same colour in all steps of all images. Each image is drawn as the encoder sees it. RoIs may extend
    beyond it by up to a quarter of its side.

    Args:
        encoder: any SparseFormer.
        images: one or more images of any size.
        max_tokens: most tokens to draw, evenly spread over all, so that the figure stays readable.
        aspect: "crop": the encoder sees the central square; "native": the whole image (`place_on_canvas`).
        tokens: number of latent tokens; None for the encoder's own initial RoIs.
    """
    device, preprocessing = next(encoder.parameters()).device, encoder.config.preprocessing
    prepare = make_transform(preprocessing, aspect)
    seen = [remove_canvas(prepare(image)).to(device)[None] for image in images]
    recorded = [record_sampling_steps(encoder, image, tokens=tokens) for image in seen]
    count = recorded[0][0].rois.shape[1]
    shown = np.unique(np.linspace(0, count - 1, min(count, max_tokens)).astype(int)).tolist()
    colours = _token_colours(len(shown))
    columns = len(recorded[0])
    figure = Figure(figsize=(2.4 * columns, 2.5 * len(images)), layout="constrained")
    grid = figure.subplots(len(images), columns, squeeze=False)
    for image, steps, row in zip(seen, recorded, grid, strict=True):
        pixels = undo_normalisation(image, preprocessing.mean, preprocessing.std)[0].numpy()
        for step, axes in zip(steps, row, strict=True):
            _show(axes, pixels)
            axes.set(xticks=[], yticks=[], aspect=pixels.shape[0] / pixels.shape[1])
            for token, colour in zip(shown, colours, strict=True):
                _draw_roi(axes, step.rois[0, token], step.points[0, token], colour, width=0.8, dot=2)
    for number, axes in enumerate(grid[0], start=1):
        axes.set_title(f"sampling step {number}", fontsize=9)
    return figure


def undo_normalisation(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn preprocessed images back into pixels: float[B, 3, H, W] -> float32[B, H, W, 3] in [0, 1], on the CPU."""
    means, stds = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    return (images.float().cpu() * stds + means).clamp(0, 1).permute(0, 2, 3, 1)


def draw_sampling_steps(
    image: np.ndarray,
    steps: Sequence[SamplingStep],
    index: int,
    tokens: Iterable[int],
    colour_by: str = "token",
    points: bool = True,
    boxes: Iterable[Sequence[float]] = (),
) -> Image.Image:
    """Draw the RoIs of some tokens at one or more sampling steps.

    Args:
        image: float32[H, W, 3] in [0, 1], as the encoder sees it.
        steps: drawn over each other.
        index: the image's place in the batch of the steps.
        tokens: the tokens to draw.
        colour_by: "token": a colour for each of all n tokens; "step": a colour for each step.
        points: draw the sampling points as well.
        boxes: boxes (x1, y1, x2, y2) in image coordinates to outline, e.g. those of regions.

    Raises:
        UserError: `colour_by` is unknown, or a token does not exist.
    """
    if colour_by not in COLOURS:
        raise unknown_choice("colouring", colour_by, COLOURS)
    count, chosen = steps[0].rois.shape[1], list(tokens)
    if not all(0 <= token < count for token in chosen):
        raise UserError(f"Tokens must lie in 0…{count - 1}, got {chosen}.")
    figure, axes = _canvas(image)
    by_token, by_step = _token_colours(count), colormaps["plasma"](np.linspace(0, 0.9, len(steps)))
    for number, step in enumerate(steps):
        for token in chosen:
            colour = by_token[token] if colour_by == "token" else by_step[number]
            dots = step.points[index, token] if points else step.points.new_empty(0, 2)
            _draw_roi(axes, step.rois[index, token], dots, colour, width=1.5, dot=9)
    _outline(axes, boxes)
    return _rendered(figure)


def draw_heat(image: np.ndarray, heat: Tensor, boxes: Iterable[Sequence[float]] = ()) -> Image.Image:
    """Draw a heat map over the image in grey; the hottest cell is always brightest.

    Args:
        image: float32[H, W, 3] in [0, 1].
        heat: float32[cells, cells], not negative; see `spread_over_rois`.
        boxes: boxes in image coordinates to outline.
    """
    figure, axes = _canvas(np.repeat(image.mean(axis=-1, keepdims=True), 3, axis=-1))
    relative = (heat / heat.max().clamp_min(1e-12)).numpy()
    axes.imshow(
        colormaps["inferno"](relative), extent=(0, 1, 1, 0), alpha=0.15 + 0.7 * relative, interpolation="bilinear"
    )
    _outline(axes, boxes)
    return _rendered(figure)


def to_image_coordinates(image: np.ndarray, x: float, y: float) -> tuple[float, float]:
    """Convert a pixel of the drawing of `image`, of shape [H, W, 3], to image coordinates."""
    width, height = _drawing_size(image)
    return (1 + 2 * MARGIN) * x / width - MARGIN, (1 + 2 * MARGIN) * y / height - MARGIN


def _drawing_size(image: np.ndarray) -> tuple[int, int]:
    """Width and height in pixels of the drawing of an image of shape [H, W, 3]."""
    height, width = image.shape[:2]
    return round(SIDE * width / max(width, height)), round(SIDE * height / max(width, height))


def _canvas(image: np.ndarray) -> tuple[Figure, Axes]:
    """Create a figure that shows only the image and a transparent margin."""
    width, height = _drawing_size(image)
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor="none")
    axes = figure.add_axes((0, 0, 1, 1))
    _show(axes, image)
    axes.set(aspect="auto")
    axes.set_axis_off()
    return figure, axes


def _show(axes: Axes, image: np.ndarray) -> None:
    """Show an image in image coordinates, with the margin around it."""
    axes.imshow(image, extent=(0, 1, 1, 0), interpolation="nearest")
    axes.set(xlim=(-MARGIN, 1 + MARGIN), ylim=(1 + MARGIN, -MARGIN))


def _draw_roi(axes: Axes, roi: Tensor, points: Tensor, colour: np.ndarray, *, width: float, dot: float) -> None:
    x1, y1, x2, y2 = roi.tolist()
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=width))
    if len(points):
        axes.scatter(points[:, 0], points[:, 1], color=colour, s=dot, linewidths=0)


def _outline(axes: Axes, boxes: Iterable[Sequence[float]]) -> None:
    """Outline boxes in black and white, which no token has."""
    for x1, y1, x2, y2 in boxes:
        for colour, style in (("black", "-"), ("white", "--")):
            outline = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linestyle=style, linewidth=3)
            axes.add_patch(outline)


def _token_colours(count: int) -> np.ndarray:
    return colormaps["hsv"](np.linspace(0, 1, count, endpoint=False))


def _rendered(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba()))
