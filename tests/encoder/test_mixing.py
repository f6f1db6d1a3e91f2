"""Adaptive mixing against explicit sums."""

import pytest
import torch
import torch.nn.functional as F

from sparse_vlm.encoder.mixing import AdaptiveMixing


@pytest.mark.parametrize("biased", [True, False], ids=["v1", "bootstrapped"])
@pytest.mark.parametrize("points", [5, 36])
def test_mixing_is_what_its_definition_says(points: int, biased: bool) -> None:
    torch.manual_seed(0)
    mixing = AdaptiveMixing(width=16, channels=3, points=points, generator_width=4, eps=1e-5, biased=biased)
    for parameter in mixing.parameters():
        torch.nn.init.normal_(parameter)
    tokens, samples = torch.randn(1, 1, 16), torch.randn(1, 1, points, 3)

    rows = max(points, 32)
    parameters = mixing.generate(mixing.squeeze(mixing.norm(tokens)))[0, 0]
    m, s = parameters[:9].reshape(3, 3), parameters[9:].reshape(rows, points)
    mixed = torch.einsum("pi,io->po", samples[0, 0], m)
    if mixing.m_beta is not None and mixing.s_beta is not None:
        mixed = torch.einsum("op,pc->oc", s, F.gelu(mixed + mixing.m_beta)) + mixing.s_beta[:, None]
    else:
        mixed = torch.einsum("op,pc->oc", s, mixed)
    flat = torch.stack([F.gelu(mixed)[p, c] for p in range(rows) for c in range(3)])
    torch.testing.assert_close(mixing(tokens, samples)[0, 0], mixing.out_proj(flat), rtol=1e-4, atol=1e-4)
