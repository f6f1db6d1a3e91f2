"""A gaze that follows: the RoIs of a frame's last step are the initial RoIs of the next frame of its stream (ours)."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import ceil, gcd
from typing import NamedTuple

import torch
from torch import Tensor

from sparse_vlm.encoder.model import EncoderOutput, SparseFormer, check_generation, starting_rois
from sparse_vlm.encoder.rois import to_center_size
from sparse_vlm.errors import UserError


@dataclass(frozen=True)
class Following:
    """Settings of a gaze that follows.

    A token restarts if its next RoI is that of the layout instead of its last one.

    Attributes:
        restart: share of the tokens that restart in each frame, in turns, so that each restarts every 1/restart frames;
            1 encodes every frame independently.
        repeats: focusing repeats after the first frame of a stream, which are the last ones; None for all.
        largest_change: a token is lost, and restarts, if its RoI is larger or smaller than that of the layout by more
            than this factor, or if its center has left the image.
    """

    restart: float = 0.125
    repeats: int | None = None
    largest_change: float = 4.0

    def __post_init__(self) -> None:
        if not 0 <= self.restart <= 1:
            raise UserError(f"The share of tokens that restart lies between 0 and 1, got {self.restart}.")
        if not self.largest_change > 1:
            raise UserError(f"The largest change of a RoI's size is a factor above 1, got {self.largest_change}.")


class _Gaze(NamedTuple):
    """What a stream keeps from frame to frame.

    Attributes:
        rois: RoIs of the last frame's last step, float32[n, 4].
        frames: frames so far.
    """

    rois: Tensor
    frames: int


class FollowingEncoder:
    """A SparseFormer for the frames of videos, whose RoIs follow from frame to frame.

    Each stream, e.g. a camera, has RoIs of its own. They are kept from call to call, so a clip can come in parts.

    Args:
        encoder: a bootstrapped SparseFormer.
        settings: how the gaze follows.
        tokens: number of latent tokens; None for the initial RoIs of the checkpoint.

    Raises:
        UserError: the encoder is of generation "v1", or a setting does not fit it.
    """

    def __init__(self, encoder: SparseFormer, settings: Following | None = None, tokens: int | None = None) -> None:
        check_generation(encoder.config)
        self.encoder, self.settings, self.tokens = encoder, settings or Following(), tokens
        available, repeats = encoder.config.focus.repeats, self.settings.repeats
        if repeats is not None and not 1 <= repeats <= available:
            raise UserError(f"This encoder has 1 to {available} focusing repeats, got {repeats}.")
        self._gazes: dict[Hashable, _Gaze] = {}

    def __call__(self, frames: Tensor, streams: Sequence[Hashable] | None = None) -> EncoderOutput:
        """Encode the next T frames of B streams. Stem and cortex run once for all frames.

        Args:
            frames: float[B, T, 3, H, W], normalised by the encoder's `transform`.
            streams: a name for each of the B streams, each once; a new name begins a stream. None for 0 to B - 1.

        Returns:
            The output of `encoder(frames.flatten(0, 1))`. Its RoIs are those of the last `repeats` adjustments.

        Raises:
            UserError: frames or names are malformed.
        """
        names = list(range(len(frames)) if streams is None else streams)
        if frames.ndim != 5:
            raise UserError(f"Frames are float[streams, frames, 3, H, W], got {list(frames.shape)}.")
        if len(set(names)) != len(names) or len(names) != len(frames):
            raise UserError(f"Give each of the {len(frames)} streams a name of its own, got {names}.")
        pixels = frames.flatten(0, 1)
        features = self.encoder.features(pixels).unflatten(0, frames.shape[:2])
        layout = self._layout(pixels[:1])
        followed = [self._focus(features[:, time], layout, names) for time in range(frames.shape[1])]
        latent = torch.stack([tokens for tokens, _ in followed], dim=1).flatten(0, 1)
        rois = torch.stack([steps for _, steps in followed], dim=2).flatten(1, 2)
        states = self.encoder.cortex(latent)
        return EncoderOutput(states[-1], self.encoder.cortex.pool(states[-1]), rois, states)

    def forget(self, streams: Sequence[Hashable] | None = None) -> None:
        """Forget streams, all by default: their next frame is a first one. Unknown names are ignored."""
        for name in list(self._gazes) if streams is None else streams:
            self._gazes.pop(name, None)

    def _layout(self, image: Tensor) -> Tensor:
        """Initial RoIs of an independent frame, float32[n, 4]."""
        requested = starting_rois(self.encoder.config, image, None, self.tokens)
        return (self.encoder.focus.initial_rois(1) if requested is None else requested)[0]

    def _focus(self, features: Tensor, layout: Tensor, names: Sequence[Hashable]) -> tuple[Tensor, Tensor]:
        """One frame of each stream: features float32[B, C, H, W] -> tokens and RoIs of the focusing transformer."""
        kept = self.encoder.config.focus.repeats if self.settings.repeats is None else self.settings.repeats
        groups = [
            [place for place, name in enumerate(names) if (name in self._gazes) == known] for known in (False, True)
        ]
        tokens, steps = [], []
        for group, repeats in zip(groups, (None, kept), strict=True):
            if group:
                whole = len(group) == len(names)
                initial = torch.stack([self._initial(names[place], layout) for place in group])
                each = self.encoder.focus(features if whole else features[group], initial, repeats)
                tokens.append(each[0])
                steps.append(each[1][-kept:])
        order = torch.tensor(groups[0] + groups[1]).argsort().to(layout.device)
        rois = torch.cat(steps, dim=1)[:, order]
        for name, last in zip(names, rois[-1].detach(), strict=True):
            frames = self._gazes[name].frames if name in self._gazes else 0
            self._gazes[name] = _Gaze(last, frames + 1)
        return torch.cat(tokens)[order], rois

    def _initial(self, name: Hashable, layout: Tensor) -> Tensor:
        """Initial RoIs float32[n, 4] of the next frame of a stream."""
        if name not in self._gazes:
            return layout
        rois, frames = self._gazes[name]
        center, size = to_center_size(rois)
        own = to_center_size(layout)[1]
        change = (size.abs() / own.abs()).log().abs().amax(-1)
        # `~` of what holds for a token that is not lost, so that NaN is lost
        lost = ~((center >= 0) & (center <= 1)).all(-1) | ~(change <= torch.tensor(self.settings.largest_change).log())
        restarted = restarting(len(layout), self.settings.restart, frames).to(lost.device) | lost
        return torch.where(restarted[:, None], layout, rois)


def restarting(tokens: int, share: float, frame: int) -> Tensor:
    """Choose the tokens that restart in a frame: the next ones in an order in which neighbours lie far apart.

    Args:
        tokens: number of tokens n.
        share: share of them, of which the number is rounded up.
        frame: number of the frame.

    Returns:
        bool[n]
    """
    count = ceil(share * tokens)
    stride = next(step for step in range(round(0.618 * tokens) or 1, tokens + 2) if gcd(step, tokens) == 1)
    places = torch.arange(frame * count, (frame + 1) * count) * stride % tokens
    return torch.zeros(tokens, dtype=torch.bool).index_fill(0, places, True)
