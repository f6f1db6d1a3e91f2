"""Pictures of what an encoder looks at and of how a training went, with matplotlib (no pyplot: nothing is global)."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor, nn

from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.focusing import SamplingPoints
from sparse_vlm.encoder.preprocessing import make_transform, remove_canvas
from sparse_vlm.errors import UserError
from sparse_vlm.files import check_output_files, new_file

FIGURES = (".png", ".svg", ".pdf")


class Glance(NamedTuple):
    """Where the n latent tokens looked in one sampling step.

    Attributes:
        rois: float32[B, n, 4], (x1, y1, x2, y2) in image coordinates, [0, 1] from edge to edge; may lie outside.
        points: float32[B, n, P, 2], the sampling points (x, y), the same coordinates.
    """

    rois: Tensor
    points: Tensor


@torch.no_grad()
def record_glances(encoder: SparseFormer, images: Tensor) -> list[Glance]:
    """The RoIs and sampling points of each sampling step, in order: the focusing repeats, then the last unit.

    The last step's RoIs are `encoder(images).rois[-1]`. A bootstrapped encoder's first step uses the learnt initial
    RoIs, the same for every image; v1 adjusts them before it samples.

    Args:
        encoder: any SparseFormer.
        images: float[B, 3, H, W], preprocessed.
    """
    glances: list[Glance] = []

    def record(_: nn.Module, inputs: tuple[Tensor, Tensor], points: Tensor) -> None:
        glances.append(Glance(inputs[1].detach().cpu(), points.detach().cpu()))

    hooks = [m.register_forward_hook(record) for m in encoder.modules() if isinstance(m, SamplingPoints)]
    try:
        encoder(images)
    finally:
        for hook in hooks:
            hook.remove()
    return glances


def roi_figure(
    encoder: SparseFormer, images: Sequence[Image.Image], max_tokens: int = 64, aspect: str = "crop"
) -> Figure:
    """RoIs and sampling points on the pictures: a row per picture, a column per sampling step.

    A token has the same colour in all steps of all pictures. Shown is what the encoder sees. RoIs outside it are drawn
    outside, up to a quarter of its side.

    Args:
        encoder: any SparseFormer.
        images: one or more pictures of any size.
        max_tokens: draw this many tokens, evenly spread over all, so that the picture stays readable.
        aspect: "crop": the encoder sees the middle square; "native": the whole picture (`place_on_canvas`).
    """
    device, preprocessing = next(encoder.parameters()).device, encoder.config.preprocessing
    prepare = make_transform(preprocessing, aspect)
    seen = [remove_canvas(prepare(image)).to(device)[None] for image in images]
    glances = [record_glances(encoder, picture) for picture in seen]
    tokens = encoder.config.focus.tokens
    shown = np.unique(np.linspace(0, tokens - 1, min(tokens, max_tokens)).astype(int)).tolist()
    steps = len(glances[0])
    figure = Figure(figsize=(2.4 * steps, 2.5 * len(images)), layout="constrained")
    grid = figure.subplots(len(images), steps, squeeze=False)
    for picture, row, cells in zip(seen, glances, grid, strict=True):
        pixels = undo_normalisation(picture, preprocessing.mean, preprocessing.std)[0].numpy()
        for glance, axes in zip(row, cells, strict=True):
            _draw_glance(axes, pixels, glance.rois[0, shown].numpy(), glance.points[0, shown].numpy())
    for step, axes in enumerate(grid[0], start=1):
        axes.set_title(f"sampling step {step}", fontsize=9)
    return figure


def undo_normalisation(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """What a person sees of preprocessed images: float[B, 3, H, W] -> float32[B, H, W, 3] in [0, 1], on the CPU."""
    means, stds = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    return (images.float().cpu() * stds + means).clamp(0, 1).permute(0, 2, 3, 1)


def _draw_glance(axes: Axes, picture: np.ndarray, rois: np.ndarray, points: np.ndarray) -> None:
    """One picture in image coordinates with the RoIs and points of some tokens."""
    axes.imshow(picture, extent=(0, 1, 1, 0), interpolation="nearest")
    colours = colormaps["hsv"](np.linspace(0, 1, len(rois), endpoint=False))
    for colour, (x1, y1, x2, y2), where in zip(colours, rois, points, strict=True):
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=0.8))
        axes.scatter(where[:, 0], where[:, 1], color=colour, s=2, linewidths=0)
    axes.set(xlim=(-0.25, 1.25), ylim=(1.25, -0.25), xticks=[], yticks=[], aspect=picture.shape[0] / picture.shape[1])


def loss_figure(logs: Mapping[str, Sequence[Mapping[str, float]]], smoothing: int = 10) -> Figure:
    """Loss curves side by side, each as logged (pale) and as the mean of the last `smoothing` logged values.

    Args:
        logs: name of the stage -> the lines of its log.jsonl; those with "step" and "loss" count.
        smoothing: window, in logged values; cut short at a curve's start.
    """
    figure = Figure(figsize=(3.6 * len(logs), 2.8), layout="constrained")
    for axes, (name, lines) in zip(figure.subplots(1, len(logs), squeeze=False)[0], logs.items(), strict=True):
        _draw_curve(axes, lines, "loss", smoothing, "tab:blue")
        axes.set(title=name, xlabel="step", ylabel="loss")
    return figure


def alignment_figure(lines: Sequence[Mapping[str, float]], smoothing: int = 10) -> Figure:
    """Loss and cosine of a bootstrapping run against steps, side by side, each pale as logged and as a running mean.

    Args:
        lines: of its log.jsonl; "loss" and "cosine" are those of training batches, "eval_cosine" (dots) of held-out
            images.
        smoothing: window of the mean, in logged values.
    """
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("loss", "cosine"), strict=True):
        _draw_curve(axes, lines, name, smoothing, "tab:blue")
        axes.set(xlabel="step", ylabel=name)
    held_out = [(line["step"], line["eval_cosine"]) for line in lines if "eval_cosine" in line]
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "o-", color="tab:orange", markersize=3, label="held out")
        axes.legend(fontsize=8)
    return figure


def _draw_curve(axes: Axes, lines: Sequence[Mapping[str, float]], name: str, smoothing: int, colour: str) -> None:
    """The values of `name` where a line has them, and the mean of the last `smoothing` of them."""
    found = [line for line in lines if name in line]
    steps, values = [line["step"] for line in found], np.array([line[name] for line in found])
    means = [values[max(0, end - smoothing) : end].mean() for end in range(1, len(values) + 1)]
    axes.plot(steps, values, color=colour, alpha=0.25)
    axes.plot(steps, means, color=colour)


def accuracy_figure(bars: Mapping[str, Mapping[str, float]]) -> Figure:
    """Grouped bars of accuracies.

    Args:
        bars: series (e.g. "model", "no image") -> group (e.g. "all", "shape") -> accuracy in [0, 1]. All series have
            the same groups.
    """
    groups = list(next(iter(bars.values())))
    width = 0.8 / len(bars)
    figure = Figure(figsize=(1.6 * len(groups) + 2, 3), layout="constrained")
    axes = figure.subplots()
    for index, (name, values) in enumerate(bars.items()):
        places = np.arange(len(groups)) + (index - (len(bars) - 1) / 2) * width
        drawn = axes.bar(places, [100 * values[group] for group in groups], width, label=name)
        axes.bar_label(drawn, fmt="%.1f", fontsize=7)
    axes.set(ylabel="accuracy, %", ylim=(0, 105), xticks=np.arange(len(groups)), xticklabels=groups)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def check_figure(name: str, path: str | Path | None, inputs: Iterable[str | Path] = ()) -> None:
    """Check that a figure can be written, before long work.

    Args:
        name: what the file is called, e.g. "--output".
        path: the file; None: it is not wanted.
        inputs: files and folders that it must not replace.

    Raises:
        UserError: it has another ending than .png, .svg or .pdf, or see `check_output_files`.
    """
    if path is not None and Path(path).suffix.lower() not in FIGURES:
        raise UserError(f"The ending of {path} must be one of {', '.join(FIGURES)}.")
    check_output_files({name: path}, inputs)


def save_figure(figure: Figure, path: str | Path, dpi: int = 150) -> None:
    """Writes a figure atomically; the ending of `path` chooses the format (.png, .svg, .pdf).

    Raises:
        UserError: `path` cannot be written.
    """
    with new_file(path) as temporary:
        figure.savefig(temporary, dpi=dpi)
