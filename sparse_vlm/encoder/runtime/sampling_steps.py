"""RoIs and sampling points of each sampling step of an encoder, and how they cover an image."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparse_vlm.encoder.focusing import SamplingPoints
from sparse_vlm.encoder.model import Encoder
from sparse_vlm.encoder.rois import to_center_size


class SamplingStep(NamedTuple):
    """RoIs and sampling points of the n latent tokens in one sampling step.

    Attributes:
        rois: float32[B, n, 4], (x1, y1, x2, y2) in image coordinates: [0, 1] from edge to edge. RoIs may extend beyond
            the image. For clips float32[B, n, 6], (x1, y1, t1, x2, y2, t2).
        points: float32[B, n, P, 2], the sampling points (x, y) in the same coordinates; for clips float32[B, n, P, 3],
            (x, y, t).
    """

    rois: Tensor
    points: Tensor


@torch.no_grad()
def record_sampling_steps(
    encoder: Encoder, images: Tensor, rois: Tensor | None = None, tokens: int | None = None
) -> list[SamplingStep]:
    """Record each sampling step in order: the focusing repeats, then the last unit.

    The RoIs of the last step are `encoder(images).rois[-1]`. The first step of a bootstrapped encoder uses the initial
    RoIs; v1 adjusts them before it samples.

    Args:
        encoder: any SparseFormer, of images or of clips.
        images: float[B, 3, H, W], or clips float[B, T, 3, H, W], preprocessed.
        rois, tokens: inputs of its `forward`.
    """
    with recorded_sampling_steps(encoder) as steps:
        encoder(images, rois=rois, tokens=tokens)
    return steps


@contextmanager
def recorded_sampling_steps(encoder: Encoder) -> Iterator[list[SamplingStep]]:
    """Record the sampling steps of everything that the encoder computes inside the `with` block, in a growing list."""
    steps: list[SamplingStep] = []

    def record(_: nn.Module, inputs: tuple[Tensor, Tensor], points: Tensor) -> None:
        steps.append(SamplingStep(inputs[1].detach().cpu(), points.detach().cpu()))

    hooks = [m.register_forward_hook(record) for m in encoder.modules() if isinstance(m, SamplingPoints)]
    try:
        yield steps
    finally:
        for hook in hooks:
            hook.remove()


def covered_share(rois: Tensor) -> float:
    """Compute the share of the image that lies in at least one RoI, exactly: the RoIs' edges cut the image into cells.

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
    """Spread each token's weight evenly over its RoI, as a heat map of the image; the part outside the image is lost.

    Args:
        rois: float32[n, 4] in image coordinates.
        weights: float32[n], e.g. attention to the tokens.
        cells: height and width of the result.

    Returns:
        float32[cells, cells], rows from the top. A cell's value is the weight in it, so that RoIs inside the image
        give the sum of `weights`.
    """
    box = _ordered(rois)
    edges = torch.linspace(0, 1, cells + 1)
    size = (box[:, 2:] - box[:, :2]).clamp_min(1e-6)  # a RoI of size 0 still has a position
    covered = []
    for axis in (0, 1):
        low, high = box[:, axis, None], box[:, axis, None] + size[:, axis, None]
        overlap = torch.minimum(high, edges[1:]) - torch.maximum(low, edges[:-1])
        covered.append(overlap.clamp_min(0) / size[:, axis, None])
    columns, rows = covered
    return torch.einsum("n,ny,nx->yx", weights, rows, columns)


def nearest_token(rois: Tensor, x: float, y: float) -> int:
    """Find the token whose RoI center is nearest to a point. float32[n, 4], image coordinates -> index."""
    center, _ = to_center_size(rois)
    return int((center - torch.tensor([x, y])).square().sum(dim=-1).argmin())


def _ordered(rois: Tensor) -> Tensor:
    """Turn mirrored RoIs (x2 < x1) into the area that they cover."""
    return torch.cat([torch.minimum(rois[:, :2], rois[:, 2:]), torch.maximum(rois[:, :2], rois[:, 2:])], dim=-1)
