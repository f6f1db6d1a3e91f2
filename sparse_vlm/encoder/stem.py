"""The stem: one early convolution, the only dense computation over the image."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Stem(nn.Module):
    """7×7 convolution of stride 2, ReLU, 3×3 max pooling of stride 2, normalisation of each pixel over its channels.

    float[B, 3, H, W] -> float32[B, C, ~H/4, ~W/4]. The normalisation uses the biased variance, eps 1e-5 inside the
    root, no affine, and runs in float32, which the sampling needs anyway. ReLU follows the pooling: the same
    numbers on a quarter of the pixels. The result's memory format is channels_last: a pixel's channels lie together,
    for the normalisation, which is then one LayerNorm kernel, and for the sampling.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, kernel_size=7, stride=2, padding=3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images.contiguous(memory_format=torch.channels_last))
        features = F.relu(F.max_pool2d(features, kernel_size=3, stride=2, padding=1)).float()
        return F.layer_norm(features.movedim(1, -1), features.shape[1:2], eps=1e-5).movedim(-1, 1)
