"""Mistakes in adaptive mixing."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_vlm.encoder import rois
from sparse_vlm.encoder.focusing import (
    AdaptiveMixing,
    SampleAndMix,
)
from tests.encoder.parity.mistakes import (
    BOTH,
    BTSP,
    V1,
    Mistake,
    Rows,
    quick_gelu,
    replace,
)


def mixing_like(
    *, between: Callable[[Tensor], Tensor] = lambda y: y, transpose_m: bool = False, transpose_s: bool = False,
    points_first: bool = False, channel_gelu: bool | None = None, use_m_beta: bool = True, use_s_beta: bool = True,
    gelu: Callable[[Tensor], Tensor] = F.gelu, final_gelu: bool = True, points_last: bool = False,
    s_first: bool = False, beta_after: bool = False,
) -> Mistake:  # fmt: skip
    def forward(self: AdaptiveMixing, tokens: Tensor, samples: Tensor) -> Tensor:
        parameters = self.generate(between(self.squeeze(self.norm(tokens))))
        if points_first:
            split = self.points_out * self.points
            second, first = parameters[..., :split], parameters[..., split:]
        else:
            split = self.channels * self.channels
            first, second = parameters[..., :split], parameters[..., split:]
        m = first.unflatten(-1, (self.channels, self.channels))
        m = m.mT if transpose_m else m
        if transpose_s:
            s = second.unflatten(-1, (self.points, self.points_out)).mT
        else:
            s = second.unflatten(-1, (self.points_out, self.points))
        biased = self.m_beta is not None
        activate_channels = biased if channel_gelu is None else channel_gelu
        m_beta = torch.zeros(1) if self.m_beta is None or not use_m_beta else self.m_beta
        s_beta = torch.zeros(1) if self.s_beta is None or not use_s_beta else self.s_beta.unsqueeze(-1)
        if s_first:
            mixed = gelu(gelu(s @ samples + s_beta) @ m + m_beta) if biased else gelu((s @ samples) @ m)
        elif beta_after:
            mixed = gelu(s @ (gelu(samples @ m) + m_beta)) + s_beta
        else:
            mixed = samples @ m + m_beta
            mixed = s @ (gelu(mixed) if activate_channels else mixed) + s_beta
            mixed = gelu(mixed) if final_gelu else mixed
        return self.out_proj((mixed.mT if points_last else mixed).flatten(-2))

    return replace(AdaptiveMixing, "forward", forward)


def tanh_gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def without_residual(self: SampleAndMix, tokens: Tensor, regions: Tensor, features: Tensor) -> Tensor:
    samples = rois.sample_features(features, self.points(tokens, regions), self.padding)
    return self.mixing(tokens, samples)


MIXING: Rows = {
    "M transposed": (BOTH, mixing_like(transpose_m=True)),
    "S transposed": (BOTH, mixing_like(transpose_s=True)),
    "S first in the parameters": (BOTH, mixing_like(points_first=True)),
    "GELU in the generator": (BOTH, mixing_like(between=F.gelu)),
    "points mixed before channels": ((V1,), mixing_like(s_first=True)),
    "GELU between the mixings": ((BTSP,), mixing_like(channel_gelu=True)),
    "no GELU between the mixings": ((V1,), mixing_like(channel_gelu=False)),
    "no GELU at the end": (BOTH, mixing_like(final_gelu=False)),
    "GELU before the biases": ((V1,), mixing_like(beta_after=True)),
    "no m_beta": ((V1,), mixing_like(use_m_beta=False)),
    "no s_beta": ((V1,), mixing_like(use_s_beta=False)),
    "QuickGELU": (BOTH, mixing_like(gelu=quick_gelu)),
    "tanh GELU": (BOTH, mixing_like(gelu=tanh_gelu)),
    "ReLU": (BOTH, mixing_like(gelu=F.relu)),
    "flattened as c·P + p": (BOTH, mixing_like(points_last=True)),
    "no residual": (BOTH, replace(SampleAndMix, "forward", without_residual)),
}
FAITHFUL: Rows = {
    "mixing": (BOTH, mixing_like()),
}
