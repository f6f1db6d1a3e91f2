"""A gaze that follows: which RoIs a frame starts with, which tokens restart, and what streams keep."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.rois import lay_out_rois, to_center_size
from sparse_vlm.encoder.runtime.following import Following, FollowingEncoder, restarting
from sparse_vlm.errors import UserError
from tests.encoder.parity.official import load_official

FOLLOW = Following(restart=0.0, largest_change=1e6)


@pytest.fixture
def clips() -> Tensor:
    """Four frames of two streams."""
    return torch.randn(2, 4, 3, 40, 56, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("tokens", [None, 9])
def test_if_all_tokens_restart_frames_are_independent(
    moving_encoder: SparseFormer, clips: Tensor, tokens: int | None
) -> None:
    follower = FollowingEncoder(moving_encoder, Following(restart=1.0), tokens)
    for time in range(4):
        followed = follower(clips[:, time : time + 1])
        alone = moving_encoder(clips[:, time], tokens=tokens)
        assert torch.equal(followed.tokens, alone.tokens)
        assert torch.equal(followed.pooled, alone.pooled)
        assert torch.equal(followed.rois, alone.rois)
        assert all(map(torch.equal, followed.hidden_states, alone.hidden_states))


@torch.no_grad()
def test_a_frame_starts_with_the_last_rois_of_the_one_before(moving_encoder: SparseFormer, clips: Tensor) -> None:
    follower = FollowingEncoder(moving_encoder, FOLLOW, tokens=4)
    rois = lay_out_rois(4).expand(2, -1, -1)
    for time in range(4):
        followed = follower(clips[:, time : time + 1])
        alone = moving_encoder(clips[:, time], rois=rois)
        torch.testing.assert_close(followed.pooled, alone.pooled)
        rois = _restart_outside(alone.rois[-1], lay_out_rois(4))
        assert (rois != lay_out_rois(4)).any(), "the test needs tokens that follow"


def _restart_outside(rois: Tensor, layout: Tensor) -> Tensor:
    center, _ = to_center_size(rois)
    inside = ((center >= 0) & (center <= 1)).all(-1)
    return torch.where(inside[..., None], rois, layout)


@torch.no_grad()
def test_tokens_of_another_size_than_the_layout_restart(moving_encoder: SparseFormer, clips: Tensor) -> None:
    first = moving_encoder(clips[:, 0], tokens=4)
    layout = lay_out_rois(4)
    center, size = to_center_size(first.rois[-1])
    change = (size / to_center_size(layout)[1]).log().abs().amax(-1)
    limit = change.median().exp().item()
    kept = (change <= change.median()) & ((center >= 0) & (center <= 1)).all(-1)
    follower = FollowingEncoder(moving_encoder, replace(FOLLOW, largest_change=limit + 1e-4), tokens=4)
    follower(clips[:, :1])
    rois = torch.where(kept[..., None], first.rois[-1], layout)
    torch.testing.assert_close(follower(clips[:, 1:2]).pooled, moving_encoder(clips[:, 1], rois=rois).pooled)


@torch.no_grad()
def test_rois_that_diverged_restart(moving_encoder: SparseFormer, clips: Tensor) -> None:
    follower = FollowingEncoder(moving_encoder, FOLLOW)
    follower(torch.full_like(clips[:, :1], torch.nan))
    assert follower(clips[:, :1]).pooled.isfinite().all()


@pytest.mark.parametrize(("tokens", "share", "count"), [(9, 0.25, 3), (16, 0.25, 4), (4, 0.1, 1), (1, 0.5, 1)])
def test_tokens_restart_in_turns(tokens: int, share: float, count: int) -> None:
    frames = -(-tokens // count)
    turns = torch.stack([restarting(tokens, share, frame) for frame in range(frames)])
    assert (turns.sum(1) == count).all()
    assert turns.any(0).all(), "every token restarts within one round"


def test_none_or_all_tokens_restart() -> None:
    assert not restarting(7, 0.0, 3).any()
    assert restarting(7, 1.0, 3).all()


def test_restarting_tokens_lie_apart() -> None:
    rows = restarting(16, 0.25, 0).view(4, 4)
    assert (rows.sum(1) == 1).all() or (rows.sum(0) == 1).all()


@torch.no_grad()
def test_fewer_repeats_after_the_first_frame(moving_encoder: SparseFormer, clips: Tensor) -> None:
    follower = FollowingEncoder(moving_encoder, replace(FOLLOW, repeats=1), tokens=4)
    output = follower(clips)
    whole = moving_encoder(clips[:, 0], tokens=4)
    torch.testing.assert_close(output.pooled.view(2, 4, -1)[:, 0], whole.pooled)
    assert output.rois.shape == (1, 8, 4, 4)
    rois = _restart_outside(whole.rois[-1], lay_out_rois(4))
    latent, steps = moving_encoder.focus(moving_encoder.features(clips[:, 1]), rois, repeats=1)
    torch.testing.assert_close(output.rois.view(2, 4, 4, 4)[:, 1], steps[-1])
    torch.testing.assert_close(
        output.pooled.view(2, 4, -1)[:, 1], moving_encoder.cortex.pool(moving_encoder.cortex(latent)[-1])
    )


@torch.no_grad()
@pytest.mark.parametrize("settings", [Following(), Following(restart=0.1, repeats=1)])
def test_a_clip_may_come_in_parts_and_beside_others(
    moving_encoder: SparseFormer, clips: Tensor, settings: Following
) -> None:
    together = FollowingEncoder(moving_encoder, settings)(clips).pooled.view(2, 4, -1)
    follower = FollowingEncoder(moving_encoder, settings)
    parts = [follower(clips[1:, :1], ["b"]), follower(clips[1:, 1:2], ["b"])]
    # "a" begins when "b" is under way, and comes first in the batch
    both = follower(torch.stack([clips[0, :2], clips[1, 2:]]), ["a", "b"]).pooled.view(2, 2, -1)
    rest = follower(clips[:1, 2:], ["a"]).pooled
    torch.testing.assert_close(torch.cat([*(part.pooled for part in parts), both[1]]), together[1])
    torch.testing.assert_close(torch.cat([both[0], rest]), together[0])


@torch.no_grad()
def test_a_stream_that_is_forgotten_begins_again(moving_encoder: SparseFormer, clips: Tensor) -> None:
    follower = FollowingEncoder(moving_encoder, FOLLOW)
    first = follower(clips[:, :1]).pooled
    assert not torch.allclose(follower(clips[:, :1]).pooled, first)
    follower.forget([1, "unknown"])
    again = follower(clips[:, :1]).pooled
    torch.testing.assert_close(again[1], first[1])
    assert not torch.allclose(again[0], first[0])
    follower.forget()
    torch.testing.assert_close(follower(clips[:, :1]).pooled, first)


MISTAKES = [
    ({"restart": 1.5}, "lies between 0 and 1, got 1.5"),
    ({"restart": float("nan")}, "got nan"),
    ({"repeats": 0}, "has 1 to 2 focusing repeats, got 0"),
    ({"repeats": 3}, "got 3"),
    ({"largest_change": 1.0}, "a factor above 1, got 1.0"),
]


@pytest.mark.parametrize(("values", "sentence"), MISTAKES)
def test_bad_settings_are_refused(tiny_encoder: SparseFormer, values: dict[str, float], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        FollowingEncoder(tiny_encoder, Following(**values))


def test_bad_frames_are_refused(tiny_encoder: SparseFormer, clips: Tensor) -> None:
    follower = FollowingEncoder(tiny_encoder)
    with pytest.raises(UserError, match=r"float\[streams, frames, 3, H, W\], got \[4, 3, 40, 56\]"):
        follower(clips[0])
    with pytest.raises(UserError, match=r"each of the 2 streams a name of its own, got \['a', 'a'\]"):
        follower(clips, ["a", "a"])
    with pytest.raises(UserError, match="each of the 2 streams"):
        follower(clips, ["a"])
    with pytest.raises(UserError, match="non-empty batch"):
        follower(clips[:, :0])


def test_v1_is_refused() -> None:
    with pytest.raises(UserError, match="is a SparseFormer v1"):
        FollowingEncoder(load_official("v1_tiny"))
