"""Rebuilding patches: what a position reads, and the regression against its definition."""

import pytest
import torch

from eval.encoders.probing.grids import Moments, choose_strength, fit, pool_to_cells, read_at_patches
from sparse_vlm.encoder.rois import lay_out_rois

PLACES = lay_out_rois(16)  # a grid of 4 × 4


def test_a_single_token_is_read_everywhere() -> None:
    token = torch.randn(2, 1, 3)
    read = read_at_patches(token, torch.tensor([[[0.1, 0.1, 0.4, 0.3]], [[-5.0, 2.0, -4.0, 3.0]]]), PLACES)
    torch.testing.assert_close(read, token.expand(-1, 16, -1))


def test_a_patch_reads_the_token_around_it_most() -> None:
    """Whether it mirrors its samples or not; the four corner patches of a quarter are equally far from its centre."""
    weights = read_at_patches(torch.eye(4)[None], lay_out_rois(4)[None], PLACES)[0].unflatten(0, (4, 4))
    own = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]])
    assert torch.equal(weights.argmax(-1), own)
    torch.testing.assert_close(weights.sum(-1), torch.ones(4, 4))
    assert weights[0, 0, 0] > weights[1, 1, 0], "nearer to the other tokens"
    mirrored = lay_out_rois(4)[:, [2, 1, 0, 3]]
    torch.testing.assert_close(read_at_patches(torch.eye(4)[None], mirrored[None], PLACES)[0], weights.flatten(0, 1))


def test_a_small_roi_outweighs_the_whole_image_inside_it_alone() -> None:
    rois = torch.tensor([[[0.0, 0, 1, 1], [0, 0, 0.25, 0.25]]])
    weights = read_at_patches(torch.eye(2)[None], rois, PLACES)[0]
    assert weights[0, 1] > 0.9
    assert weights[15, 1] < 1e-6
    point = torch.tensor([[[0.0, 0, 1, 1], [0.125, 0.125, 0.1250001, 0.125]]])
    torch.testing.assert_close(read_at_patches(torch.eye(2)[None], point, PLACES)[0], weights, atol=1e-3, rtol=0)


def test_cells_average_the_patches_inside() -> None:
    patches = torch.arange(16.0)[None, :, None]
    whole, cell = pool_to_cells(patches, PLACES, 1)
    assert (whole.item(), cell.tolist()) == (7.5, [[[0.0, 0.0, 1.0, 1.0]]])
    assert pool_to_cells(patches, PLACES, 4)[0].flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    torch.testing.assert_close(pool_to_cells(patches, PLACES, 16)[0], patches)
    rows = pool_to_cells(torch.arange(9.0)[None, :, None], lay_out_rois(9), 4)[0].flatten()
    torch.testing.assert_close(rows[0], torch.tensor((0 + 1 / 2 + 3 / 2 + 4 / 4) / 2.25))


def data(images: int, seed: int, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    """x float[N, 5, 3] of different scales, and a linear y float[N, 5, 2] with a mean for each position and noise."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(images, 5, 3, generator=generator) * torch.tensor([1.0, 100.0, 0.01]) + 4
    weights = torch.tensor([[1.0, 2.0], [0.01, 0.0], [100.0, -50.0]])
    y = x @ weights + torch.arange(10.0).view(5, 2) ** 2
    return x, y + noise * torch.randn(images, 5, 2, generator=generator)


def test_a_linear_relation_is_found() -> None:
    x, y = data(50, 0, noise=0)
    linear = fit(Moments.of(x, y), 1e-9)
    unseen = data(20, 1, noise=0)
    torch.testing.assert_close(linear(unseen[0]), unseen[1].double(), atol=1e-2, rtol=1e-3)


def test_the_regression_is_ridge_on_standardised_channels() -> None:
    x, y = (each.double() for each in data(40, 0, noise=1))
    linear = fit(Moments.of(x, y), 0.5)
    flat_x, flat_y = ((each - each.mean(0)).flatten(0, 1) for each in (x, y))
    deviation = flat_x.square().mean(0).sqrt()
    scaled = flat_x / deviation
    wanted = torch.linalg.solve(scaled.T @ scaled + 0.5 * 200 * torch.eye(3).double(), scaled.T @ flat_y)
    torch.testing.assert_close(linear.weights, wanted / deviation[:, None])


def test_errors_follow_from_moments() -> None:
    x, y = data(40, 0, noise=1)
    linear, (other_x, other_y) = fit(Moments.of(x, y), 0.1), data(10, 1, noise=1)
    wanted = (linear(other_x) - other_y.double()).square().sum((0, 1))
    torch.testing.assert_close(linear.squared_errors(Moments.of(other_x, other_y)), wanted, rtol=1e-6, atol=1e-3)
    added = Moments.of(x[:7], y[:7]) + Moments.of(x[7:], y[7:])
    torch.testing.assert_close(fit(added, 0.1).weights, linear.weights)
    mean, variance = added.channels()
    torch.testing.assert_close(mean, y.double().mean((0, 1)))
    torch.testing.assert_close(variance, y.double().var((0, 1), correction=0))


@pytest.mark.parametrize(("noise", "strong"), [(0.0, False), (1e4, True)])
def test_noise_asks_for_a_strong_ridge(noise: float, strong: bool) -> None:
    found = [Moments.of(*data(images, seed, noise)) for images, seed in ((20, 0), (200, 1))]
    assert (choose_strength(*found) >= 1) is strong
