"""Recorded sampling steps, and the geometry of their RoIs."""

import pytest
import torch
from PIL import Image

from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.rois import lay_out_rois
from sparse_vlm.encoder.runtime.sampling_steps import covered_share, record_sampling_steps, spread_over_rois


def test_recorded_steps_are_those_of_the_encoder(
    moving_encoder: SparseFormer, shapes: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The RoIs are those of `encoder(images).rois`; the points are those at which features are sampled."""
    from sparse_vlm.encoder import focusing

    sampled: list[torch.Tensor] = []
    sample_features = focusing.sample_features

    def watch(features: torch.Tensor, points: torch.Tensor, padding: str) -> torch.Tensor:
        sampled.append(points)
        return sample_features(features, points, padding)

    monkeypatch.setattr(focusing, "sample_features", watch)
    images = torch.stack([moving_encoder.transform(image) for image in shapes])
    steps = record_sampling_steps(moving_encoder, images)
    assert [tuple(step.rois.shape) for step in steps] == [(3, 6, 4)] * 3  # 2 repeats and the last unit
    for step, points in zip(steps, sampled, strict=True):
        torch.testing.assert_close(step.points, points)
    rois = moving_encoder(images).rois
    torch.testing.assert_close(steps[0].rois[1], moving_encoder.focus.initial_rois.weight.detach())
    torch.testing.assert_close(steps[1].rois, rois[0].detach())
    torch.testing.assert_close(steps[2].rois, rois[1].detach())
    assert (steps[2].rois - steps[0].rois).abs().max() > 0.01


def test_recording_leaves_no_hook_behind(tiny_encoder: SparseFormer) -> None:
    first = record_sampling_steps(tiny_encoder, torch.zeros(1, 3, 64, 64))
    tiny_encoder(torch.zeros(1, 3, 64, 64))
    assert len(first) == 3
    assert not any(module._forward_hooks for module in tiny_encoder.modules())


@pytest.mark.parametrize(
    ("rois", "share"),
    [
        ([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]], 0.5),
        ([[0, 0, 0.5, 0.5], [0.25, 0.25, 0.75, 0.75]], 7 / 16),
        ([[-1, -1, 2, 2]], 1),
        ([[0.5, 0.5, 0, 0]], 0.25),  # mirrored
        ([[1.2, 0, 1.5, 1], [0.3, 0.3, 0.3, 0.3]], 0),  # outside; a point
    ],
)
def test_the_covered_share_counts_overlaps_once(rois: list[list[float]], share: float) -> None:
    assert covered_share(torch.tensor(rois)) == pytest.approx(share, abs=1e-6)


def test_heat_keeps_the_weights_inside_the_image() -> None:
    rois = torch.tensor([[0.1, 0.2, 0.4, 0.9], [0.35, 0.0, 0.85, 0.5], [0.8, 0.8, 1.2, 1.0]])
    heat = spread_over_rois(rois, torch.tensor([0.3, 0.5, 0.2]), cells=10)
    assert heat.sum() == pytest.approx(0.3 + 0.5 + 0.2 / 2)  # half of the third RoI is outside
    assert heat[0, 5] == pytest.approx(0.5 / 25)  # one of 5 × 5 cells
    assert heat[9, 0] == 0


def test_the_number_of_tokens_is_recorded(moving_encoder: SparseFormer) -> None:
    steps = record_sampling_steps(moving_encoder, torch.zeros(2, 3, 64, 64), tokens=3)
    assert {tuple(step.rois.shape) for step in steps} == {(2, 3, 4)}
    assert torch.equal(steps[0].rois[0], lay_out_rois(3))
