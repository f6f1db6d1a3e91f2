"""RoI geometry: formulas for which the parity tests are too coarse, and the initial layout."""

import math

import pytest
import torch
import torch.nn.functional as F

from sparse_vlm.encoder import rois
from sparse_vlm.errors import UserError


@pytest.mark.parametrize("count", range(1, 201))
def test_initial_rois_are_distinct_tiles_that_cover_the_image(count: int) -> None:
    tiles = rois.lay_out_rois(count)
    assert tiles.shape == (count, 4)
    assert tiles.dtype == torch.float32
    assert len(tiles.unique(dim=0)) == count
    _, size = rois.to_center_size(tiles)
    assert (size > 0).all()
    assert size.prod(dim=-1).sum().item() == pytest.approx(1, abs=1e-5)
    assert tiles.min() == 0
    assert tiles.max() == 1


@pytest.mark.parametrize("side", [1, 2, 7, 9])
def test_a_square_count_gives_a_regular_grid(side: int) -> None:
    tiles = rois.lay_out_rois(side * side).unflatten(0, (side, side))
    starts = torch.arange(side) / side
    torch.testing.assert_close(tiles[:, :, 0], starts.expand(side, side))
    torch.testing.assert_close(tiles[:, :, 1], starts[:, None].expand(side, side))


def test_center_and_size_are_inverse_to_corners() -> None:
    corners = torch.tensor([[0.1, 0.9, -0.5, 1.5], [0.0, 0.0, 1.0, 1.0]])
    center, size = rois.to_center_size(corners)
    torch.testing.assert_close(center[0], torch.tensor([-0.2, 1.2]))
    torch.testing.assert_close(size[0], torch.tensor([-0.6, 0.6]))  # signed
    torch.testing.assert_close(rois.from_center_size(center, size), corners)


def test_adjustment_uses_the_old_absolute_size() -> None:
    region = torch.tensor([[[0.6, 0.2, 0.2, 0.4]]])  # x2 < x1: width −0.4, height 0.2, centre (0.4, 0.3)
    moved = rois.adjust_rois(region, torch.tensor([[[1.0, -1.0, math.log(2), math.log(0.5)]]]))
    center, size = rois.to_center_size(moved)
    torch.testing.assert_close(center, torch.tensor([[[0.8, 0.1]]]))
    torch.testing.assert_close(size, torch.tensor([[[0.8, 0.1]]]))


def test_a_zero_adjustment_only_changes_the_sign_of_the_size() -> None:
    region = torch.tensor([[[0.6, 0.2, 0.2, 0.4]]])
    torch.testing.assert_close(rois.adjust_rois(region, torch.zeros(1, 1, 4)), torch.tensor([[[0.2, 0.2, 0.6, 0.4]]]))


def test_points_are_normalised_with_eps_added_to_the_unbiased_std() -> None:
    """Nearly equal offsets, for which the eps and its place matter (those of the official models differ too much)."""
    offsets = torch.tensor([[[[0.0, 3.0], [2e-5, 3.0], [4e-5, 3.0]]]])  # x: mean 2e-5, unbiased std 2e-5
    region = torch.tensor([[[1.0, 0.0, 0.0, 1.0]]])  # mirrored: width −1
    points = rois.place_points(region, offsets)
    torch.testing.assert_close(points[0, 0, :, 0], 0.5 - torch.tensor([-1.0, 0.0, 1.0]) * 2e-5 / (3 * 3e-5))
    torch.testing.assert_close(points[0, 0, :, 1], torch.full((3,), 0.5))


def test_samples_follow_the_coordinate_convention() -> None:
    """A feature map of its own coordinates: cell (i, j) of W×H spans [j/W, (j+1)/W] × [i/H, (i+1)/H]."""
    height, width = 4, 8
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    points = torch.tensor([[[[0.5, 0.5], [0.3, 0.8], [0.0625, 0.125]]]])
    samples = rois.sample_features(torch.stack([x, y])[None], points, "zeros")
    torch.testing.assert_close(samples, points)


@pytest.mark.parametrize(("padding", "expected"), [("zeros", 0.0), ("border", 1.0)])
def test_samples_outside_the_image(padding: str, expected: float) -> None:
    samples = rois.sample_features(torch.ones(1, 1, 4, 4), torch.tensor([[[[-0.5, 0.5], [0.5, 1.7]]]]), padding)
    assert samples.flatten().tolist() == [expected, expected]


@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("spread", [1.0, 1e3, 1e6, 1e9])
def test_finite_points_are_bit_identical_to_torch(padding: str, spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 5, 9, generator=generator, requires_grad=True)
    points = (spread * torch.randn(2, 4, 6, 2, generator=generator)).requires_grad_()
    plain = F.grid_sample(features, 2 * points - 1, padding_mode=padding, align_corners=False).permute(0, 2, 3, 1)
    ours = rois.sample_features(features, points, padding)
    assert torch.equal(ours, plain)
    weights = torch.randn(plain.shape, generator=generator)
    gradients = [torch.autograd.grad((samples * weights).sum(), (features, points)) for samples in (ours, plain)]
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_points_that_are_not_finite_neither_crash_nor_spoil_gradients(padding: str) -> None:
    """torch's backward pass reads invalid memory for them, and usually crashes."""
    features = torch.randn(4, 8, 40, 40, requires_grad=True)
    points = torch.rand(4, 50, 16, 2)
    for index, value in enumerate((math.nan, math.inf, -math.inf, 3e38, -3e38, 1e20)):
        points[:, :, index] = value
    points.requires_grad_()
    samples = rois.sample_features(features, points, padding)
    samples.square().sum().backward()
    assert samples.isfinite().all()
    assert features.grad is not None
    assert points.grad is not None
    assert features.grad.isfinite().all()
    assert points.grad.isfinite().all()
    assert (points.grad[:, :, :6] == 0).all()
    assert (points.grad[:, :, 6:] != 0).any()


def test_encoding_of_one_roi_by_hand() -> None:
    code = rois.encode_rois(torch.tensor([[[0.25, 0.5, 0.75, 1.0]]]), width=16).unflatten(-1, (4, 4))
    for coordinate, values in zip((0.25, 0.5, 0.75, 1.0), code[0, 0], strict=True):
        angles = [coordinate * math.pi * 128 ** (k / 3) for k in range(4)]
        expected = [math.sin(angles[0]), math.sin(angles[2]), math.cos(angles[1]), math.cos(angles[3])]
        torch.testing.assert_close(values, torch.tensor(expected), rtol=0, atol=1e-4)


def test_no_gradient_flows_through_the_encoding() -> None:
    assert not rois.encode_rois(torch.rand(1, 2, 4, requires_grad=True), 16).requires_grad


@pytest.mark.parametrize("spans", [1, 2, 5, 7])
@pytest.mark.parametrize("count", [7, 8, 16, 50])
def test_rois_of_clips_are_distinct_and_cover_space_and_time(count: int, spans: int) -> None:
    boxes = rois.lay_out_clip_rois(count, spans)
    assert (boxes.shape, boxes.dtype) == ((count, 6), torch.float32)
    assert len(boxes.unique(dim=0)) == count
    _, size = rois.to_center_size(boxes)
    assert (size > 0).all()
    assert size.prod(dim=-1).sum().item() == pytest.approx(1, abs=1e-5)
    assert (boxes.min(), boxes.max()) == (0, 1)
    assert len(boxes[:, 2].unique()) == spans


@pytest.mark.parametrize(("count", "spans"), [(3, 4), (0, 1), (4, 0), (4, -1)])
def test_a_span_without_a_roi_is_refused(count: int, spans: int) -> None:
    with pytest.raises(UserError, match=f"at least 1 token, got {count} tokens for {spans} spans"):
        rois.lay_out_clip_rois(count, spans)


def test_rois_of_an_image_get_a_span_of_time() -> None:
    boxes = rois.over_time(torch.tensor([[[0.1, 0.2, 0.3, 0.4]]]), 0.5, 0.75)
    torch.testing.assert_close(boxes, torch.tensor([[[0.1, 0.2, 0.5, 0.3, 0.4, 0.75]]]))


def test_time_is_adjusted_like_space() -> None:
    region = torch.tensor([[[0.6, 0.2, 0.5, 0.2, 0.4, 0.75]]])
    moved = rois.adjust_rois(region, torch.tensor([[[1.0, -1.0, 2.0, math.log(2), math.log(0.5), math.log(4)]]]))
    center, size = rois.to_center_size(moved)
    torch.testing.assert_close(center, torch.tensor([[[0.8, 0.1, 1.125]]]))
    torch.testing.assert_close(size, torch.tensor([[[0.8, 0.1, 1.0]]]))


def test_samples_of_clips_follow_the_coordinate_convention() -> None:
    """A clip of its own coordinates: frame i of T spans [i/T, (i+1)/T]."""
    t, y, x = torch.meshgrid(*((torch.arange(n) + 0.5) / n for n in (3, 4, 8)), indexing="ij")
    points = torch.tensor([[[[0.5, 0.5, 0.5], [0.3, 0.8, 0.4], [0.0625, 0.125, 1 / 6]]]])
    samples = rois.sample_features(torch.stack([x, y, t])[None], points, "zeros")
    torch.testing.assert_close(samples, points)


@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_clips_stand_still_before_and_after(padding: str, frames: int) -> None:
    """Outside the image the padding decides, at all times."""
    clip = torch.arange(1.0, frames + 1)[None, None, :, None, None].expand(1, 1, frames, 4, 4)
    points = torch.tensor([[[[0.5, 0.5, 0.0], [0.5, 0.5, -3.0], [0.5, 0.5, 1.0], [0.5, 0.5, 9.0], [1.9, 0.5, -3.0]]]])
    samples = rois.sample_features(clip, points, padding).flatten().tolist()
    assert samples == [1, 1, frames, frames, 1 if padding == "border" else 0]


@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("frames", [1, 2, 7])
def test_samples_of_a_still_clip_are_those_of_the_image(padding: str, frames: int) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, 5, 9, generator=generator)
    points = 2 * torch.randn(2, 4, 6, 3, generator=generator)
    still = image.unsqueeze(2).expand(-1, -1, frames, -1, -1)
    expected = rois.sample_features(image, points[..., :2], padding)
    torch.testing.assert_close(rois.sample_features(still, points, padding), expected, rtol=1e-5, atol=1e-6)


def test_points_in_clips_that_are_not_finite_neither_crash_nor_spoil_gradients() -> None:
    clip, points = torch.randn(2, 4, 3, 20, 20, requires_grad=True), torch.rand(2, 9, 8, 3)
    for index, value in enumerate((math.nan, math.inf, -math.inf, 3e38, -3e38, 1e20)):
        points[:, :, index] = value
    points.requires_grad_()
    samples = rois.sample_features(clip, points, "border")
    samples.square().sum().backward()
    assert samples.isfinite().all()
    assert points.grad is not None
    assert points.grad.isfinite().all()
    assert (points.grad[:, :, 6:] != 0).any()


def test_two_coordinates_have_twice_the_frequencies() -> None:
    code = rois.encode_rois(torch.tensor([[[0.25, 0.75]]]), width=8).unflatten(-1, (2, 4))
    for coordinate, values in zip((0.25, 0.75), code[0, 0], strict=True):
        angles = [coordinate * math.pi * 128 ** (k / 3) for k in range(4)]
        expected = [math.sin(angles[0]), math.sin(angles[2]), math.cos(angles[1]), math.cos(angles[3])]
        torch.testing.assert_close(values, torch.tensor(expected), rtol=0, atol=1e-4)
