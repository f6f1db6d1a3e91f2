"""Normalisation of the teacher's representations by fixed statistics, so that each channel counts in the loss."""

import torch
from torch import Tensor, nn

NORMALIZATIONS = ("none", "center", "standardize")
SMALLEST_DEVIATION = 1e-6  # a channel that never changes carries no information and must not be blown up


class TargetNormalization(nn.Module):
    """Fixed affine map of a representation: (x − mean) / deviation, per channel.

    If all representations are close to their mean, as in DINOv2, a student that always returns the mean has a high
    cosine already, and the plain cosine provides little further signal. A few channels with large deviations can hide
    the others in the same way.

    PHI-S (arXiv 2410.01680) is not offered: it rotates the centred representation and scales all of it by one number,
    which leaves every cosine as "center" gives it.

    The statistics are buffers and thus part of a training checkpoint; they are not trained.

    Args:
        width: number of channels D.
        kind: "none": x itself; "center": x − mean; "standardize": (x − mean) / deviation.
    """

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))

    def measure(self, representations: Tensor) -> None:
        """Take the statistics of representations, float[..., D]."""
        rows = representations.float().flatten(0, -2)
        if self.kind != "none":
            self.mean.copy_(rows.mean(0))
        if self.kind == "standardize":
            self.deviation.copy_(rows.std(0, correction=0).clamp_min(SMALLEST_DEVIATION))

    def forward(self, representations: Tensor) -> Tensor:
        """float[..., D] -> float32[..., D]"""
        return (representations.float() - self.mean) / self.deviation
