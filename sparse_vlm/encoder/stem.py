"""The stem: an early convolution, the only dense computation over the image."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Stem(nn.Module):
    """7×7 convolution of stride 2, ReLU, 3×3 max pooling of stride 2, normalisation over the channels of each pixel.

    float[B, 3, H, W] -> float32[B, C, ~H/4, ~W/4]. The normalisation uses the biased variance, eps 1e-5 inside the root
    and no affine parameters. It runs in float32, which sampling needs anyway. ReLU is applied after pooling, which
    gives the same result on a quarter of the pixels. The memory format is channels_last: the channels of a pixel are
    contiguous, so that the normalisation is a single LayerNorm kernel, and sampling is faster.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, kernel_size=7, stride=2, padding=3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images.contiguous(memory_format=torch.channels_last))
        features = F.relu(F.max_pool2d(features, kernel_size=3, stride=2, padding=1)).float()
        return F.layer_norm(features.movedim(1, -1), features.shape[1:2], eps=1e-5).movedim(-1, 1)
