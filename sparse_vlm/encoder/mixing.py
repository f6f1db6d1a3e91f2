"""Adaptive mixing: a token generates the matrices that mix its sampled features over channels and over points."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AdaptiveMixing(nn.Module):
    """Features of the sampling points, mixed by matrices that the token generates -> an update of the token.

    M [C, C] acts on channels, S [P_out, P] on points, P_out = max(P, 32).
    Bootstrapped: y = GELU(S·(X·M)). v1: y = GELU(S·GELU(X·M + m_beta) + s_beta). Then Linear(flatten(y)).

    Args:
        width: channels of the tokens.
        channels: channels C of the sampled features.
        points: sampling points P.
        generator_width: inner width of the generator Linear(Linear(LN(token))).
        eps: epsilon of the LayerNorm.
        biased: v1's form.
    """

    def __init__(self, width: int, channels: int, points: int, generator_width: int, eps: float, biased: bool) -> None:
        super().__init__()
        self.channels, self.points, self.points_out = channels, points, max(points, 32)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.squeeze = nn.Linear(width, generator_width)
        self.generate = nn.Linear(generator_width, channels * channels + self.points_out * points)
        self.m_beta = nn.Parameter(torch.zeros(channels)) if biased else None
        self.s_beta = nn.Parameter(torch.zeros(self.points_out)) if biased else None
        self.out_proj = nn.Linear(self.points_out * channels, width)

    def forward(self, tokens: Tensor, samples: Tensor) -> Tensor:
        """float[B, n, width], float[B, n, P, C] -> float[B, n, width], to be added to the tokens."""
        parameters = self.generate(self.squeeze(self.norm(tokens)))
        split = self.channels * self.channels
        channel_mix = parameters[..., :split].unflatten(-1, (self.channels, self.channels))
        point_mix = parameters[..., split:].unflatten(-1, (self.points_out, self.points))
        mixed = samples @ channel_mix
        if self.m_beta is not None:
            mixed = F.gelu(mixed + self.m_beta.to(mixed.dtype))
        mixed = point_mix @ mixed
        if self.s_beta is not None:
            mixed = mixed + self.s_beta.to(mixed.dtype).unsqueeze(-1)
        return self.out_proj(F.gelu(mixed).flatten(-2))
