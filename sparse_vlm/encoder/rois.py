"""Geometry of RoIs: pure functions on float32 tensors.

Convention: a RoI is (x1, y1, x2, y2) in image coordinates, x to the right, y down, [0, 1] spanning the image from
edge to edge. RoIs may leave [0, 1] and are never clamped; x2 < x1 is allowed (a signed size mirrors the sampling).
Everything is float32 whatever the model's dtype: in bfloat16 a sampling point moves by up to half a feature cell.

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


def check_rois(rois: Tensor, batch: int) -> None:
    """Check the initial RoIs of an encoder.

    Args:
        rois: float[n, 4] for all images, or float[batch, n, 4].
        batch: number of images.

    Raises:
        UserError: another shape or dtype, no RoI, one that is not finite, or one without width or height.
    """
    shape = list(rois.shape)
    if rois.ndim not in (2, 3) or shape[-1] != 4 or shape[-2] < 1 or (rois.ndim == 3 and shape[0] != batch):
        raise UserError(f"RoIs are float[n, 4] or, for {batch} images, float[{batch}, n, 4] with n ≥ 1, got {shape}.")
    if not rois.is_floating_point():
        raise UserError(f"RoIs are floating-point image coordinates, got {str(rois.dtype).removeprefix('torch.')}.")
    if not rois.isfinite().all():
        raise UserError("RoIs must be finite numbers, but some are NaN or infinite.")
    if (to_center_size(rois)[1] == 0).any():
        raise UserError("RoIs must have a width and a height, but some are zero.")


def to_center_size(rois: Tensor) -> tuple[Tensor, Tensor]:
    """float32[…, 4] -> centre float32[…, 2] and signed size float32[…, 2] (x, y)."""
    top_left, bottom_right = rois[..., :2], rois[..., 2:]
    return (top_left + bottom_right) / 2, bottom_right - top_left


def from_center_size(center: Tensor, size: Tensor) -> Tensor:
    """Inverse of `to_center_size`."""
    return torch.cat([center - size / 2, center + size / 2], dim=-1)


def adjust_rois(rois: Tensor, logits: Tensor) -> Tensor:
    """Move and scale RoIs: centre += dxy·|wh| (the old size), wh = |wh|·exp(dwh).

    Args:
        rois: float32[B, n, 4].
        logits: float32[B, n, 4], (dx, dy, dw, dh).
    """
    center, size = to_center_size(rois)
    size = size.abs()
    return from_center_size(center + logits[..., :2] * size, size * logits[..., 2:].exp())


def place_points(rois: Tensor, offsets: Tensor) -> Tensor:
    """Compute sampling points from offsets, normalised over the points of a token and scaled to its RoI.

    Per coordinate o' = (o − mean) / (3·(std + 1e-5)) with the unbiased std; point = centre + o'·(signed size).

    Args:
        rois: float32[B, n, 4].
        offsets: float32[B, n, P, 2], not normalised.

    Returns:
        float32[B, n, P, 2], (x, y) in image coordinates.
    """
    std, mean = torch.std_mean(offsets, dim=-2, keepdim=True)
    center, size = to_center_size(rois)
    normalised = (offsets - mean) / (3 * (std + 1e-5))
    return center.unsqueeze(-2) + normalised * size.unsqueeze(-2)


def sample_features(features: Tensor, points: Tensor, padding: str) -> Tensor:
    """Sample the feature map bilinearly (align_corners False: coordinate 0 is the edge of the first cell).

    Coordinates that are infinite or too large for torch are moved to a place far outside the image, NaN to 0: otherwise
    the backward pass of torch's grid_sample on a CPU reads invalid memory. Other coordinates are unchanged.

    Args:
        features: float32[B, C, H, W].
        points: float32[B, n, P, 2] in image coordinates.
        padding: values outside the image, "zeros" or "border".

    Returns:
        float32[B, n, P, C]
    """
    points = points.nan_to_num(0.0, FARTHEST, -FARTHEST).clamp(-FARTHEST, FARTHEST)
    samples = F.grid_sample(features, 2 * points - 1, mode="bilinear", padding_mode=padding, align_corners=False)
    return samples.permute(0, 2, 3, 1)


def encode_rois(rois: Tensor, width: int) -> Tensor:
    """Encode the four coordinates with sinusoids.

    Each coordinate times π is multiplied by width/4 frequencies exp(linspace(0, ln 128)). The encoding of a coordinate
    is the sines of the even-indexed frequencies, then the cosines of the odd-indexed ones. No gradient reaches the
    RoIs, as in the authors' code.

    Args:
        rois: float32[B, n, 4].
        width: channels of the result, a multiple of 8.

    Returns:
        float32[B, n, width]
    """
    count = width // 4
    frequencies = torch.linspace(0, math.log(128), count, dtype=torch.float32, device=rois.device).exp()
    angles = (rois.detach() * math.pi).unsqueeze(-1) * frequencies
    return torch.cat([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(-2)
