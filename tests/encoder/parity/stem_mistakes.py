"""Mistakes in the stem."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_vlm.encoder import SparseFormer, stem
from tests.encoder.parity.mistakes import BOTH, Mistake, Patch, Rows, replace


def stem_like(
    *, correction: int = 0, eps: float = 1e-5, eps_in_root: bool = True, pool: int = 1, relu: bool = True
) -> Mistake:
    def forward(self: stem.Stem, images: Tensor) -> Tensor:
        features = self.conv(images)
        features = F.max_pool2d(F.relu(features) if relu else features, 3, 2, pool)
        variance, mean = torch.var_mean(features, dim=1, correction=correction, keepdim=True)
        return (features - mean) / ((variance + eps).sqrt() if eps_in_root else variance.sqrt() + eps)

    return replace(stem.Stem, "forward", forward)


def normalise_before_pooling(self: stem.Stem, images: Tensor) -> Tensor:
    features = F.relu(self.conv(images)).movedim(1, -1)
    return F.max_pool2d(F.layer_norm(features, features.shape[-1:]).movedim(-1, 1), 3, 2, 1)


def transposed_image(patch: Patch, encoder: SparseFormer) -> None:
    conv = encoder.stem.conv
    conv.weight.data = conv.weight.data.mT.contiguous()


STEM: Rows = {
    "unbiased variance": (BOTH, stem_like(correction=1)),
    "eps outside the root": (BOTH, stem_like(eps_in_root=False)),
    "eps 1e-6": (BOTH, stem_like(eps=1e-6)),
    "eps 0": (BOTH, stem_like(eps=1e-12)),
    "no ReLU": (BOTH, stem_like(relu=False)),
    "unpadded pooling": (BOTH, stem_like(pool=0)),
    "normalised before pooling": (BOTH, replace(stem.Stem, "forward", normalise_before_pooling)),
    "x and y exchanged": (BOTH, transposed_image),
}
FAITHFUL: Rows = {
    "stem": (BOTH, stem_like()),
}
