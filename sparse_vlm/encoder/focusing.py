"""The focusing transformer: latent tokens that sample the stem's features inside their RoIs, and adjust these RoIs.

`axes` is 2 for images, whose RoIs are (x1, y1, x2, y2), and 3 for clips: (x1, y1, t1, x2, y2, t2).
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from sparse_vlm.encoder.config import FocusConfig, SparseFormerConfig
from sparse_vlm.encoder.float32 import Float32LayerNorm, Float32Linear, Float32Module, float32_region
from sparse_vlm.encoder.rois import adjust_rois, encode_rois, lay_out_rois, over_time, place_points, sample_features


class InitialRoIs(Float32Module):
    """Learnt initial RoIs float32[n, 2·axes], the same for every image or clip."""

    def __init__(self, tokens: int, axes: int) -> None:
        super().__init__()
        layout = lay_out_rois(tokens)
        self.weight = nn.Parameter(layout if axes == 2 else over_time(layout))

    def forward(self, batch: int) -> Tensor:
        """Return float32[batch, n, 2·axes].

        Call the module instead of reading `weight`: accelerate only loads an offloaded weight when its module is
        called.
        """
        return self.weight.float().expand(batch, -1, -1)


class SamplingPoints(Float32Module):
    """Sampling points of a token: Linear(LN(token)), without bias, plus learnt base offsets, relative to the RoI."""

    def __init__(self, width: int, points: int, eps: float, axes: int) -> None:
        super().__init__()
        self.axes = axes
        self.norm = Float32LayerNorm(width, eps)
        self.linear = Float32Linear(width, axes * points, bias=False)
        self.base = nn.Parameter(torch.zeros(axes * points, dtype=torch.float32))  # interleaved x, y (, t)

    def forward(self, tokens: Tensor, rois: Tensor) -> Tensor:
        """float[B, n, width], float32[B, n, 2·axes] -> points float32[B, n, P, axes] in the coordinates of the RoIs."""
        with float32_region(tokens):
            offsets = self.linear(self.norm(tokens.float())) + self.base
            return place_points(rois, offsets.unflatten(-1, (-1, self.axes)))


class RoIAdjustment(Float32Module):
    """RoI adjustment by tokens. v1: Linear(LN(x)); bootstrapped: Linear(GELU(Linear(LN(x)))); no bias at the end."""

    def __init__(self, width: int, eps: float, hidden: bool, axes: int) -> None:
        super().__init__()
        self.norm = Float32LayerNorm(width, eps)
        self.hidden = Float32Linear(width, width) if hidden else None
        self.linear = Float32Linear(width, 2 * axes, bias=False)

    def forward(self, tokens: Tensor, rois: Tensor) -> Tensor:
        """float[B, n, width], float32[B, n, 2·axes] -> float32[B, n, 2·axes]"""
        with float32_region(tokens):
            tokens = self.norm(tokens.float())
            if self.hidden is not None:
                tokens = F.gelu(self.hidden(tokens))
            return adjust_rois(rois, self.linear(tokens))


class RoIEncoding(Float32Module):
    """Encoding of a RoI, to be added to its token: Linear(LN(sinusoids)).

    For a clip it is the sum of two such encodings, of (x1, y1, x2, y2) and of (t1, t2). Space thus has the encoding of
    an image encoder, whose LN knows nothing of time.
    """

    def __init__(self, width: int, eps: float, axes: int = 2) -> None:
        super().__init__()
        self.width = width
        self.norm = Float32LayerNorm(width, eps)
        self.linear = Float32Linear(width, width)
        self.time = RoIEncoding(width, eps) if axes == 3 else None

    def forward(self, rois: Tensor) -> Tensor:
        """float32[B, n, 2·axes] -> float32[B, n, width]"""
        if self.time is not None:
            corners = rois.unflatten(-1, (2, 3))
            return self._encode(corners[..., :2].flatten(-2)) + self.time(corners[..., 2])
        return self._encode(rois)

    def _encode(self, coordinates: Tensor) -> Tensor:
        with float32_region(coordinates):
            return self.linear(self.norm(encode_rois(coordinates, self.width)))


class AdaptiveMixing(nn.Module):
    """Mixing of sampled features over channels and points, by matrices that the token generates.

    M [C, C] acts on channels, S [P_out, P] on points, P_out = max(P, 32).
    Bootstrapped: y = GELU(S·(X·M)). v1: y = GELU(S·GELU(X·M + m_beta) + s_beta). The result is Linear(flatten(y)).

    Args:
        width: channels of the tokens.
        channels: channels C of the sampled features.
        points: sampling points P.
        generator_width: inner width of the generator Linear(Linear(LN(token))).
        eps: epsilon of the LayerNorm.
        biased: True for v1, with m_beta and s_beta.
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


class SampleAndMix(nn.Module):
    """Sampling step: sample features in the RoI of each token, mix them adaptively, add the result to the token."""

    def __init__(self, config: FocusConfig, channels: int, width: int, generator_width: int, axes: int) -> None:
        super().__init__()
        v1 = config.generation == "v1"
        self.padding = "zeros" if v1 else "border"
        self.points = SamplingPoints(width, config.points, config.eps, axes)
        self.mixing = AdaptiveMixing(width, channels, config.points, generator_width, config.eps, biased=v1)

    def forward(self, tokens: Tensor, rois: Tensor, features: Tensor) -> Tensor:
        """float[B, n, width], float32[B, n, 2·axes], features float32[B, C, (T,) H, W] -> float[B, n, width]"""
        samples = sample_features(features, self.points(tokens, rois), self.padding)
        return tokens + self.mixing(tokens, samples.to(tokens.dtype))


def _attention_block(width: int, heads: int, eps: float) -> Block:
    """Pre-norm ViT block with exact GELU, MLP ratio 4 and qkv bias."""
    return Block(width, heads, qkv_bias=True, norm_layer=partial(LayerNorm, eps=eps))  # type: ignore[arg-type]


class V1Unit(nn.Module):
    """Unit of v1: attention, RoI adjustment, sampling step, MLP (arXiv 2304.03768)."""

    def __init__(
        self, config: FocusConfig, channels: int, width: int, heads: int, generator_width: int, axes: int
    ) -> None:
        super().__init__()
        self.sampling = SampleAndMix(config, channels, width, generator_width, axes)
        self.block = _attention_block(width, heads, config.eps)
        self.adjustment = RoIAdjustment(width, config.eps, hidden=False, axes=axes)

    def forward(self, tokens: Tensor, rois: Tensor, features: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return updated tokens and adjusted RoIs. `step` (the repetition) is not used in v1."""
        tokens = tokens + self.block.attn(self.block.norm1(tokens))
        rois = self.adjustment(tokens, rois)
        tokens = self.sampling(tokens, rois, features)
        return tokens + self.block.mlp(self.block.norm2(tokens)), rois


class BootstrappedUnit(nn.Module):
    """Unit (arXiv 2312.01987): stage embedding, sampling step, RoI encoding, attention, MLP, RoI adjustment."""

    def __init__(self, config: FocusConfig, channels: int, axes: int) -> None:
        super().__init__()
        width = config.width
        self.stage_embedding = nn.Parameter(torch.zeros(config.repeats, width))
        self.sampling = SampleAndMix(config, channels, width, config.generator_width, axes)
        self.encoding = RoIEncoding(width, config.eps, axes)
        self.block = _attention_block(width, config.heads, config.eps)
        self.adjustment = RoIAdjustment(width, config.eps, hidden=True, axes=axes)

    def forward(self, tokens: Tensor, rois: Tensor, features: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return updated tokens and adjusted RoIs for repetition `step`."""
        tokens = tokens + self.stage_embedding[step].to(tokens.dtype)
        tokens = self.sampling(tokens, rois, features)
        tokens = self.block(tokens + self.encoding(rois).to(tokens.dtype))
        return tokens, self.adjustment(tokens, rois)


class BootstrappedLastUnit(nn.Module):
    """Sampling step and RoI encoding at the width of the cortex; the RoIs are unchanged."""

    def __init__(self, config: FocusConfig, channels: int, width: int, axes: int) -> None:
        super().__init__()
        self.sampling = SampleAndMix(config, channels, width, config.last_generator_width, axes)
        self.encoding = RoIEncoding(width, config.eps, axes)

    def forward(self, tokens: Tensor, rois: Tensor, features: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return updated tokens and the same RoIs."""
        tokens = self.sampling(tokens, rois, features)
        return tokens + self.encoding(rois).to(tokens.dtype), rois


class FocusingTransformer(nn.Module):
    """Features of an image or clip -> n latent tokens at the width of the cortex, and the RoIs after each adjustment.

    The repeated unit runs `repeats` times with shared weights. A Linear (in v1, followed by a LayerNorm) projects the
    tokens to the width of the cortex. The last unit samples once more; in v1 it also adjusts the RoIs once more.

    Args:
        config: configuration of the encoder.
        axes: 2 for images, 3 for clips.
    """

    def __init__(self, config: SparseFormerConfig, axes: int = 2) -> None:
        super().__init__()
        focus, channels, width = config.focus, config.stem.channels, config.cortex.width
        v1 = focus.generation == "v1"
        self.axes = axes
        self.repeats = focus.repeats
        self.initial_rois = InitialRoIs(focus.tokens, axes)
        # bootstrapped: all tokens share one embedding and differ only in their RoIs
        self.initial_embedding = nn.Parameter(torch.zeros(focus.tokens if v1 else 1, focus.width))
        self.repeated_unit: V1Unit | BootstrappedUnit
        self.last_unit: V1Unit | BootstrappedLastUnit
        if v1:
            self.repeated_unit = V1Unit(focus, channels, focus.width, focus.heads, focus.generator_width, axes)
            self.last_unit = V1Unit(focus, channels, width, focus.last_heads, focus.last_generator_width, axes)
        else:
            self.repeated_unit = BootstrappedUnit(focus, channels, axes)
            self.last_unit = BootstrappedLastUnit(focus, channels, width, axes)
        norm = [nn.LayerNorm(width, eps=focus.eps)] if v1 else []
        self.transition = nn.Sequential(nn.Linear(focus.width, width), *norm)

    def forward(
        self, features: Tensor, rois: Tensor | None = None, repeats: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """features float32[B, C, (T,) H, W] -> tokens float[B, n, width] and RoIs float32[steps, B, n, 2·axes].

        RoIs are in the order of the adjustments; the last unit of a bootstrapped model samples inside the last ones.

        Args:
            features: output of the stem.
            rois: initial RoIs, float32[B, n, 2·axes]; None for the learned ones.
            repeats: number of repetitions to run, 1 to `self.repeats`, which are the last ones; None for all.
        """
        skipped = 0 if repeats is None else self.repeats - repeats
        rois = self.initial_rois(features.shape[0]) if rois is None else rois
        # Not expanded to [B, n, width]: what the first step computes from the tokens alone is the same for all images
        # (and, if bootstrapped, for all tokens), so it is computed once. The dtype is the narrower one: open_clip's low
        # precision casts Linears but leaves embeddings in float32, and vLLM's Linears keep biases in float32 on a CPU.
        transition: Any = self.transition[0]
        narrower = min((self.initial_embedding.dtype, transition.bias.dtype), key=lambda dtype: dtype.itemsize)
        tokens = self.initial_embedding.to(narrower).unsqueeze(0)
        steps = []
        for step in range(skipped, self.repeats):
            tokens, rois = self.repeated_unit(tokens, rois, features, step)
            steps.append(rois)
        tokens, last_rois = self.last_unit(self.transition(tokens), rois, features, self.repeats)
        if isinstance(self.last_unit, V1Unit):
            steps.append(last_rois)
        return tokens, torch.stack(steps)
