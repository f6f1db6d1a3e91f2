"""Normalisation of targets by fixed statistics."""

import pytest
import torch
import torch.nn.functional as F

from sparse_vlm.bootstrap.targets import TargetNormalization


def test_each_kind_on_numbers_by_hand() -> None:
    rows = torch.tensor([[1.0, 10.0], [3.0, 50.0]])
    expected = {"none": rows, "center": [[-1.0, -20.0], [1.0, 20.0]], "standardize": [[-1.0, -1.0], [1.0, 1.0]]}
    for kind, wanted in expected.items():
        normalize = TargetNormalization(2, kind)
        normalize.measure(rows)
        assert torch.allclose(normalize(rows), torch.as_tensor(wanted))


def test_statistics_are_over_all_but_the_channels_and_stay_fixed() -> None:
    normalize, tokens = TargetNormalization(4, "standardize"), 3 * torch.randn(5, 7, 4) + 2
    normalize.measure(tokens)
    deviation, mean = torch.std_mean(tokens.flatten(0, 1), 0, correction=0)
    other = torch.randn(2, 4)
    for _ in range(2):
        assert torch.allclose(normalize(other), (other - mean) / deviation, atol=1e-6)
    assert normalize(other.bfloat16()).dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in normalize.parameters())


def test_a_constant_channel_stays_finite() -> None:
    normalize = TargetNormalization(2, "standardize")
    normalize.measure(torch.tensor([[1.0, 5.0], [2.0, 5.0]]))
    assert normalize(torch.tensor([[1.5, 5.0]])).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("scale", [0.1, 7.0])
def test_a_rotation_and_one_scale_as_in_phi_s_leave_cosines_as_centring_gives_them(scale: float) -> None:
    """Why PHI-S is not offered."""
    own, wanted = torch.randn(6, 8) + 1, torch.randn(6, 8) + 1
    normalize = TargetNormalization(8, "center")
    normalize.measure(wanted)
    rotation = torch.linalg.qr(torch.randn(8, 8)).Q * scale
    turned = [normalize(each) @ rotation for each in (own, wanted)]
    assert torch.allclose(
        F.cosine_similarity(*turned), F.cosine_similarity(normalize(own), normalize(wanted)), atol=1e-5
    )
