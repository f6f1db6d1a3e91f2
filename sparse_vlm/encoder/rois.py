"""Geometry of RoIs: pure functions on float32 tensors.

Convention: a RoI is (x1, y1, x2, y2) in image coordinates, x to the right, y down, [0, 1] spanning the image from
edge to edge. A RoI of a clip is (x1, y1, t1, x2, y2, t2), with [0, 1] spanning the clip from the beginning of its first
frame to the end of its last one; `axes` is 2 for images and 3 for clips. RoIs may leave [0, 1] and are never clamped;
x2 < x1 is allowed (a signed size mirrors the sampling). Everything is float32 whatever the model's dtype: in bfloat16 a
sampling point moves by up to half a feature cell.

RoIs and points of a model that diverges are NaN or infinite, and stay so, which makes the divergence visible. Only
`sample_features` replaces them by finite places.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_vlm.errors import UserError

WHOLE_IMAGE = (0.0, 0.0, 1.0, 1.0)
FARTHEST = 1e4  # in image coordinates; everything this far outside the image gives the same samples


def lay_out_rois(count: int, box: Sequence[float] = WHOLE_IMAGE) -> Tensor:
    """Tile a box with `count` RoIs: about √count rows, with tiles of equal width in each row.

    All tiles differ for any count, and a square count gives the authors' √N × √N grid. This differs from the authors,
    who give every token beyond floor(√N)² the whole image: tokens with the same RoI and embedding stay identical for
    ever.

    Args:
        count: number of RoIs, at least 1.
        box: (x1, y1, x2, y2) in image coordinates, inside the image.

    Returns:
        float32[count, 4]

    Raises:
        UserError: `count` is less than 1, or the box is empty or leaves the image.
    """
    if count < 1:
        raise UserError(f"An image needs at least 1 token, got {count}.")
    check_box(box)
    rows = max(1, round(math.sqrt(count)))
    tiles = []
    for row in range(rows):
        columns = count // rows + (row < count % rows)
        for column in range(columns):
            tiles.append((column / columns, row / rows, (column + 1) / columns, (row + 1) / rows))
    left, top, right, bottom = box
    sides, corner = torch.tensor([right - left, bottom - top] * 2), torch.tensor([left, top] * 2)
    return torch.tensor(tiles, dtype=torch.float32) * sides + corner


def lay_out_grid(rows: int, columns: int) -> Tensor:
    """Return the cells of a grid as RoIs, in row-major order: float32[rows · columns, 4]."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    sides = column / columns, row / rows, (column + 1) / columns, (row + 1) / rows
    return torch.stack(sides, dim=-1).flatten(0, 1)


def over_time(rois: Tensor, start: float = 0.0, end: float = 1.0) -> Tensor:
    """Give RoIs of an image a span of time, by default the whole clip: float32[…, 4] -> float32[…, 6]."""
    times = torch.tensor([start, end], dtype=rois.dtype, device=rois.device).expand(*rois.shape[:-1], 2)
    return torch.cat([rois.unflatten(-1, (2, 2)), times.unsqueeze(-1)], dim=-1).flatten(-2)


def lay_out_clip_rois(count: int, spans: int = 1) -> Tensor:
    """Divide a clip into equal spans of time, and tile the image in each of them. All RoIs differ.

    Args:
        count: number of RoIs, at least `spans`.
        spans: number of spans of time.

    Returns:
        float32[count, 6], in order of time.

    Raises:
        UserError: a span would have no RoI, or there is no span.
    """
    if not 1 <= spans <= count:
        raise UserError(f"Each span of time needs at least 1 token, got {count} tokens for {spans} spans.")
    counts = [count // spans + (span < count % spans) for span in range(spans)]
    return torch.cat(
        [over_time(lay_out_rois(tiles), span / spans, (span + 1) / spans) for span, tiles in enumerate(counts)]
    )


def check_box(box: Sequence[float]) -> None:
    """Check that a box lies inside the image.

    Raises:
        UserError: it is not four finite numbers with 0 ≤ x1 < x2 ≤ 1 and 0 ≤ y1 < y2 ≤ 1.
    """
    values = list(box)
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if not len(values) == len(numbers) == 4 or not all(map(math.isfinite, numbers)):
        raise UserError(f"A box is four numbers (x1, y1, x2, y2), got {values}.")
    left, top, right, bottom = values
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise UserError(
            f"A box lies inside the image, 0 ≤ x1 < x2 ≤ 1 and 0 ≤ y1 < y2 ≤ 1 in image coordinates, got {values}."
        )


def check_rois(rois: Tensor, batch: int, axes: int = 2) -> None:
    """Check the initial RoIs of an encoder.

    Args:
        rois: float[n, 2·axes] for all images or clips, or float[batch, n, 2·axes].
        batch: number of images or clips.
        axes: 2 for images, 3 for clips.

    Raises:
        UserError: another shape or dtype, no RoI, one that is not finite, or one without width, height or duration.
    """
    shape, size = list(rois.shape), 2 * axes
    thing, extent = ("image", "a width and a height") if axes == 2 else ("clip", "a width, a height and a duration")
    if rois.ndim not in (2, 3) or shape[-1] != size or shape[-2] < 1 or (rois.ndim == 3 and shape[0] != batch):
        form = f"float[n, {size}] or, for {batch} {thing}s, float[{batch}, n, {size}] with n ≥ 1"
        raise UserError(f"RoIs are {form}, got {shape}.")
    if not rois.is_floating_point():
        raise UserError(f"RoIs are floating-point {thing} coordinates, got {str(rois.dtype).removeprefix('torch.')}.")
    if not rois.isfinite().all():
        raise UserError("RoIs must be finite numbers, but some are NaN or infinite.")
    if (to_center_size(rois)[1] == 0).any():
        raise UserError(f"RoIs must have {extent}, but some are zero.")


def to_center_size(rois: Tensor) -> tuple[Tensor, Tensor]:
    """float32[…, 2·axes] -> centre float32[…, axes] and signed size float32[…, axes] (x, y, for clips t)."""
    low, high = rois.chunk(2, dim=-1)
    return (low + high) / 2, high - low


def from_center_size(center: Tensor, size: Tensor) -> Tensor:
    """Inverse of `to_center_size`."""
    return torch.cat([center - size / 2, center + size / 2], dim=-1)


def adjust_rois(rois: Tensor, logits: Tensor) -> Tensor:
    """Move and scale RoIs: centre += dxy·|wh| (the old size), wh = |wh|·exp(dwh); likewise time and duration.

    Args:
        rois: float32[B, n, 2·axes].
        logits: float32[B, n, 2·axes], (dx, dy, dw, dh), or (dx, dy, dt, dw, dh, dd) with the duration d.
    """
    center, size = to_center_size(rois)
    size = size.abs()
    shift, scale = logits.chunk(2, dim=-1)
    return from_center_size(center + shift * size, size * scale.exp())


def place_points(rois: Tensor, offsets: Tensor) -> Tensor:
    """Compute sampling points from offsets, normalised over the points of a token and scaled to its RoI.

    Per coordinate o' = (o − mean) / (3·(std + 1e-5)) with the unbiased std; point = centre + o'·(signed size).

    Args:
        rois: float32[B, n, 2·axes].
        offsets: float32[B, n, P, axes], not normalised.

    Returns:
        float32[B, n, P, axes], (x, y) or (x, y, t) in the coordinates of the RoIs.
    """
    std, mean = torch.std_mean(offsets, dim=-2, keepdim=True)
    center, size = to_center_size(rois)
    normalised = (offsets - mean) / (3 * (std + 1e-5))
    return center.unsqueeze(-2) + normalised * size.unsqueeze(-2)


def sample_features(features: Tensor, points: Tensor, padding: str) -> Tensor:
    """Sample the feature map bilinearly (align_corners False: coordinate 0 is the edge of the first cell).

    Clips are sampled trilinearly: the features of frame i of T are at time (i + 1/2) / T. Before the first and after
    the last of these times the clip stands still, whatever the padding.

    Coordinates that are infinite or too large for torch are moved to a place far outside the image, NaN to 0: otherwise
    the backward pass of torch's grid_sample on a CPU reads invalid memory. Other coordinates are unchanged.

    Args:
        features: float32[B, C, H, W], or float32[B, C, T, H, W] of clips.
        points: float32[B, n, P, 2] in image coordinates, or float32[B, n, P, 3] in clip coordinates.
        padding: values outside the image, "zeros" or "border".

    Returns:
        float32[B, n, P, C]
    """
    points = points.nan_to_num(0.0, FARTHEST, -FARTHEST).clamp(-FARTHEST, FARTHEST)
    if features.ndim == 5:
        margin = 0.5 / features.shape[2]
        places = torch.cat([points[..., :2], points[..., 2:].clamp(margin, 1 - margin)], dim=-1).unsqueeze(-2)
        samples = F.grid_sample(features, 2 * places - 1, mode="bilinear", padding_mode=padding, align_corners=False)
        return samples.squeeze(-1).permute(0, 2, 3, 1)
    samples = F.grid_sample(features, 2 * points - 1, mode="bilinear", padding_mode=padding, align_corners=False)
    return samples.permute(0, 2, 3, 1)


def encode_rois(rois: Tensor, width: int) -> Tensor:
    """Encode coordinates with sinusoids.

    Each of the k coordinates times π is multiplied by width/k frequencies exp(linspace(0, ln 128)). Its encoding
    is the sines of the even-indexed frequencies, then the cosines of the odd-indexed ones. No gradient reaches the
    RoIs, as in the authors' code.

    Args:
        rois: float32[B, n, k], the k = 4 coordinates of RoIs, or the k = 2 ends of their spans of time.
        width: channels of the result, a multiple of 8.

    Returns:
        float32[B, n, width]
    """
    count = width // rois.shape[-1]
    frequencies = torch.linspace(0, math.log(128), count, dtype=torch.float32, device=rois.device).exp()
    angles = (rois.detach() * math.pi).unsqueeze(-1) * frequencies
    return torch.cat([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(-2)
