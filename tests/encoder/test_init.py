"""A new model: which parameters receive a gradient in the first step, and that no two tokens are identical."""

import re

import pytest
import torch

from sparse_vlm.encoder import SparseFormer, SparseFormerConfig
from sparse_vlm.encoder.focusing import BootstrappedUnit
from sparse_vlm.encoder.init import _base_offsets
from tests.encoder.parity.official import NAMES, official_config

# Their last Linear starts at zero, so the modules before it have a zero gradient (not None) in the first step.
BEHIND_A_ZERO = re.compile(r"\.(points\.norm|mixing\.(norm|squeeze)|adjustment\.(norm|hidden))\.")


def without_gradient(encoder: SparseFormer, images: torch.Tensor) -> set[str]:
    encoder.zero_grad(set_to_none=True)
    encoder(images).pooled.square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    return {name for name, value in encoder.named_parameters() if not value.grad.any()}  # type: ignore[union-attr]


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_reaches_every_parameter(name: str) -> None:
    torch.manual_seed(0)
    encoder, images = SparseFormer(official_config(name)), torch.randn(2, 3, 64, 64)
    names = dict(encoder.named_parameters())
    assert without_gradient(encoder, images) == {key for key in names if BEHIND_A_ZERO.search(key)}
    torch.optim.SGD(encoder.parameters(), lr=1e-3).step()
    assert without_gradient(encoder, images) == set()


@pytest.mark.parametrize("name", ["v1_tiny", "btsp_clip_tiny"])
@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 6, 48, 49, 63, 64, 81])
def test_no_two_tokens_of_a_new_model_coincide(name: str, tokens: int) -> None:
    torch.manual_seed(0)
    config = official_config(name)
    config = type(config).from_dict(config.to_dict() | {"focus": config.to_dict()["focus"] | {"tokens": tokens}})
    encoder = SparseFormer(config).eval()
    with torch.no_grad():
        output = encoder(torch.randn(1, 3, 64, 64))
    latent = output.tokens[0, encoder.num_prefix_tokens :]
    assert latent.shape[0] == tokens
    distances = torch.cdist(latent, latent, compute_mode="donot_use_mm_for_euclid_dist")
    distances.fill_diagonal_(float("inf"))
    assert distances.min() > 1e-3 * latent.norm(dim=-1).mean()
    assert all(len(rois.unique(dim=0)) == tokens for rois in output.rois[:, 0])


def test_initial_values_follow_the_table(tiny_config: SparseFormerConfig) -> None:
    torch.manual_seed(0)
    encoder = SparseFormer(tiny_config)
    unit = encoder.focus.repeated_unit
    assert isinstance(unit, BootstrappedUnit)
    for head, last in [
        (unit.sampling.points.norm, unit.sampling.points.linear),
        (unit.sampling.mixing.norm, unit.sampling.mixing.generate),
        (unit.adjustment.norm, unit.adjustment.linear),
    ]:
        assert torch.equal(head.weight, torch.full((64,), 64**-0.5))
        assert not last.weight.any()
    assert unit.sampling.mixing.generate.bias.abs().max() <= (6 / 16) ** 0.5
    assert 0.017 < unit.block.mlp.fc1.weight.std() < 0.023
    assert 0.5 < encoder.focus.initial_embedding.std() < 1.5
    # conv: fan_out = 8·7·7
    assert encoder.stem.conv.weight.std().item() == pytest.approx((2 / (8 * 49)) ** 0.5, rel=0.1)


def test_base_offsets_are_a_grid_of_cell_centres_or_random() -> None:
    torch.manual_seed(0)
    assert _base_offsets(4).tolist() == [-0.25, -0.25, 0.25, -0.25, -0.25, 0.25, 0.25, 0.25]  # x, y, x, y, …
    assert _base_offsets(5).abs().max() <= 0.5


def test_initialisation_depends_on_the_seed() -> None:
    weights = []
    for _ in range(2):
        torch.manual_seed(3)
        weights.append(SparseFormer(official_config("btsp_clip_tiny")).state_dict())
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
