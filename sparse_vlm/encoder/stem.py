"""The stem: one early convolution, the only dense computation over the image."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Stem(nn.Module):
    """7×7 convolution of stride 2, ReLU, 3×3 max pooling of stride 2, normalisation of each pixel over its channels.

    float[B, 3, H, W] -> float32[B, C, ~H/4, ~W/4]. The normalisation uses the biased variance, eps 1e-5 inside the
    root, no affine, and runs in float32, which the sampling needs anyway. ReLU follows the pooling: the same
    numbers on a quarter of the pixels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, kernel_size=7, stride=2, padding=3)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(F.max_pool2d(self.conv(images), kernel_size=3, stride=2, padding=1)).float()
        variance, mean = torch.var_mean(features, dim=1, correction=0, keepdim=True)
        return (features - mean) * torch.rsqrt(variance + 1e-5)
