"""Statistics of RoIs that show a collapse: all tokens at one place, or outside the image."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_vlm.encoder.rois import to_center_size

# n tiles that cover the image once have a spread of about 0.41, a size of 1/√n and no area outside.
SMALLEST_SPREAD = 0.05
SMALLEST_SIZE, LARGEST_SIZE = 0.02, 2.0
LARGEST_OUTSIDE = 0.5


@dataclass(frozen=True)
class RoIStatistics:
    """Means over images, in image coordinates ([0, 1] from edge to edge).

    Attributes:
        size: √(width · height) of a RoI, mean over tokens.
        spread: root mean square distance of the tokens' RoI centres from their mean.
        outside: fraction of a RoI's area outside the image, mean over tokens.
    """

    size: float
    spread: float
    outside: float

    def collapse(self) -> str | None:
        """Describe a collapse in one sentence, or return None.

        RoIs have collapsed if all centres are at one place (spread below 0.05), if they are as small as a point (size
        below 0.02, about one cell of the feature map at 224 px) or much larger than the image (size above 2), or if
        most of their area is outside the image (above 0.5).
        """
        if self.spread < SMALLEST_SPREAD:
            return f"all tokens sample one place (spread of the RoI centres {self.spread:.3f} < {SMALLEST_SPREAD})."
        if not SMALLEST_SIZE <= self.size <= LARGEST_SIZE:
            return f"the mean size of the RoIs is {self.size:.3f}, outside {SMALLEST_SIZE}…{LARGEST_SIZE} image sides."
        if self.outside > LARGEST_OUTSIDE:
            return f"{self.outside:.0%} of the RoIs' area is outside the image (more than {LARGEST_OUTSIDE:.0%})."
        return None


def roi_numbers(rois: Tensor) -> Tensor:
    """Compute the statistics of each image.

    Args:
        rois: float32[B, n, 4], e.g. `EncoderOutput.rois[-1]`.

    Returns:
        float32[B, 3]: size, spread, outside, as in `RoIStatistics`.
    """
    center, size = to_center_size(rois)
    area = size.abs().prod(dim=-1)
    spread = (center - center.mean(dim=1, keepdim=True)).square().sum(dim=-1).mean(dim=1).sqrt()
    low, high = (center - size.abs() / 2).clamp(0, 1), (center + size.abs() / 2).clamp(0, 1)
    inside = (high - low).prod(dim=-1)
    outside = torch.where(area > 0, 1 - inside / area.clamp_min(torch.finfo(area.dtype).tiny), 0.0)
    return torch.stack([area.sqrt().mean(dim=1), spread, outside.mean(dim=1)], dim=-1)


def roi_statistics(numbers: Tensor) -> RoIStatistics:
    """Average the output float32[N, 3] of `roi_numbers` over images."""
    return RoIStatistics(*numbers.mean(dim=0).tolist())
