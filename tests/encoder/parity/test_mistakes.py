"""Every mistake that a reader of the architecture could make is caught by the comparison with the authors' numbers.

Each row of MISTAKES changes one thing in a faithful model; the parity check of test_parity.py must then fail.
Two kinds of mistake stay below the tolerances on these tiny models and are caught elsewhere: a wrong LayerNorm eps
(test_variants.py asserts every one) and, in the bootstrapped models, a misplaced eps of the points' spread
(test_rois.py; v1's numbers catch it here). v1 adjusts its RoIs, with |size|, before it samples: the sign of the size
in the sampling plays a part in the bootstrapped models only.
"""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Attention, QuickGELU
from torch import Tensor, nn

from sparse_vlm.encoder import SparseFormer, focusing, mixing, rois, stem
from sparse_vlm.encoder.cortex import Cortex
from sparse_vlm.encoder.focusing import (
    AdaptiveMixing,
    BootstrappedLastUnit,
    BootstrappedUnit,
    RoIAdjustment,
    SampleAndMix,
    SamplingPoints,
    V1Unit,
)
from tests.encoder.parity.official import load_official, relative_errors

Patch = pytest.MonkeyPatch
Mistake = Callable[[Patch, SparseFormer], None]
BTSP, AUGREG, V1 = "btsp_clip_tiny", "btsp_augreg_tiny", "v1_tiny"
BOTH = (BTSP, V1)


def replace(owner: object, name: str, value: object) -> Mistake:
    """The mistake of having `value` instead of the function or method `owner.name`."""
    return lambda patch, encoder: patch.setattr(owner, name, value)


# ---- stem


def stem_like(
    *, correction: int = 0, eps: float = 1e-5, eps_in_root: bool = True, pool: int = 1, relu: bool = True
) -> Mistake:
    def forward(self: stem.Stem, images: Tensor) -> Tensor:
        features = self.conv(images)
        features = F.max_pool2d(F.relu(features) if relu else features, 3, 2, pool)
        variance, mean = torch.var_mean(features, dim=1, correction=correction, keepdim=True)
        return (features - mean) / ((variance + eps).sqrt() if eps_in_root else variance.sqrt() + eps)

    return replace(stem.Stem, "forward", forward)


def normalise_before_pooling(self: stem.Stem, images: Tensor) -> Tensor:
    features = F.relu(self.conv(images)).movedim(1, -1)
    return F.max_pool2d(F.layer_norm(features, features.shape[-1:]).movedim(-1, 1), 3, 2, 1)


def transposed_image(patch: Patch, encoder: SparseFormer) -> None:
    conv = encoder.stem.conv
    conv.weight.data = conv.weight.data.mT.contiguous()


# ---- RoI geometry


def points_like(
    *, factor: float = 3, eps: float = 1e-5, eps_outside: bool = False, unbiased: bool = True, signed: bool = True,
    centred: bool = True, interleaved: bool = True, half: float = 1, corner: bool = False,
) -> Mistake:  # fmt: skip
    def place_points(regions: Tensor, offsets: Tensor) -> Tensor:
        if not interleaved:
            offsets = offsets.flatten(-2).unflatten(-1, (2, -1)).transpose(-1, -2)
        std = offsets.std(dim=-2, keepdim=True, unbiased=unbiased)
        mean = offsets.mean(dim=-2, keepdim=True) if centred else 0
        spread = factor * std + eps if eps_outside else factor * (std + eps)
        center, size = rois.to_center_size(regions)
        origin = regions[..., :2] if corner else center
        size = size if signed else size.abs()
        return origin.unsqueeze(-2) + half * (offsets - mean) / spread * size.unsqueeze(-2)

    return replace(focusing, "place_points", place_points)


def adjust_like(*, absolute: bool = True, new_size: bool = False, exp: bool = True, relative: bool = True) -> Mistake:
    def adjust_rois(regions: Tensor, logits: Tensor) -> Tensor:
        center, size = rois.to_center_size(regions)
        size = size.abs() if absolute else size
        new = size * logits[..., 2:].exp() if exp else size * (1 + logits[..., 2:])
        step = (new if new_size else size) if relative else 1
        return rois.from_center_size(center + logits[..., :2] * step, new)

    return replace(focusing, "adjust_rois", adjust_rois)


def sample_like(
    *, grid: Callable[[Tensor], Tensor] = lambda p: 2 * p - 1, corners: bool = False, mode: str = "bilinear"
) -> Mistake:
    def sample_features(features: Tensor, points: Tensor, padding: str) -> Tensor:
        samples = F.grid_sample(features, grid(points), mode=mode, padding_mode=padding, align_corners=corners)
        return samples.permute(0, 2, 3, 1)

    return replace(focusing, "sample_features", sample_features)


def padding_is(value: str) -> Mistake:
    def mistake(patch: Patch, encoder: SparseFormer) -> None:
        for module in encoder.modules():
            if isinstance(module, SampleAndMix):
                module.padding = value

    return mistake


def interleave(angles: Tensor) -> Tensor:
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(-3)


def per_coordinate(angles: Tensor) -> Tensor:
    return torch.cat([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(-2)


def halves(angles: Tensor) -> Tensor:
    return torch.cat([angles[..., 0::2].sin(), angles[..., 0::2].cos()], dim=-1).flatten(-2)


def encode_like(
    *, scale: float = math.pi, top: float = 128, endpoint: bool = True, geometric: bool = True,
    layout: Callable[[Tensor], Tensor] = per_coordinate, before: Callable[[Tensor], Tensor] = lambda r: r,
) -> Mistake:  # fmt: skip
    def encode_rois(regions: Tensor, width: int) -> Tensor:
        count = width // 4
        exponents = torch.linspace(0, math.log(top), count + (not endpoint))[:count]
        frequencies = exponents.exp() if geometric else torch.linspace(1, top, count)
        return layout((before(regions) * scale).unsqueeze(-1) * frequencies)

    return replace(focusing, "encode_rois", encode_rois)


# ---- mixing


def mixing_like(
    *, between: Callable[[Tensor], Tensor] = lambda y: y, transpose_m: bool = False, transpose_s: bool = False,
    points_first: bool = False, channel_gelu: bool | None = None, use_m_beta: bool = True, use_s_beta: bool = True,
    gelu: Callable[[Tensor], Tensor] = F.gelu, final_gelu: bool = True, points_last: bool = False,
    s_first: bool = False, beta_after: bool = False,
) -> Mistake:  # fmt: skip
    def forward(self: AdaptiveMixing, tokens: Tensor, samples: Tensor) -> Tensor:
        parameters = self.generate(between(self.squeeze(self.norm(tokens))))
        if points_first:
            split = self.points_out * self.points
            second, first = parameters[..., :split], parameters[..., split:]
        else:
            split = self.channels * self.channels
            first, second = parameters[..., :split], parameters[..., split:]
        m = first.unflatten(-1, (self.channels, self.channels))
        m = m.mT if transpose_m else m
        if transpose_s:
            s = second.unflatten(-1, (self.points, self.points_out)).mT
        else:
            s = second.unflatten(-1, (self.points_out, self.points))
        biased = self.m_beta is not None
        activate_channels = biased if channel_gelu is None else channel_gelu
        m_beta = torch.zeros(1) if self.m_beta is None or not use_m_beta else self.m_beta
        s_beta = torch.zeros(1) if self.s_beta is None or not use_s_beta else self.s_beta.unsqueeze(-1)
        if s_first:
            mixed = gelu(gelu(s @ samples + s_beta) @ m + m_beta) if biased else gelu((s @ samples) @ m)
        elif beta_after:
            mixed = gelu(s @ (gelu(samples @ m) + m_beta)) + s_beta
        else:
            mixed = samples @ m + m_beta
            mixed = s @ (gelu(mixed) if activate_channels else mixed) + s_beta
            mixed = gelu(mixed) if final_gelu else mixed
        return self.out_proj((mixed.mT if points_last else mixed).flatten(-2))

    return replace(AdaptiveMixing, "forward", forward)


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def tanh_gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def without_residual(self: SampleAndMix, tokens: Tensor, regions: Tensor, features: Tensor) -> Tensor:
    samples = rois.sample_features(features, self.points(tokens, regions), self.padding)
    return self.mixing(tokens, samples)


# ---- units


def v1_unit_like(order: str) -> Mistake:
    """Steps: a attention, r RoI adjustment, s sampling + mixing, m MLP."""

    def forward(self: V1Unit, tokens: Tensor, regions: Tensor, features: Tensor, step: int) -> tuple[Tensor, Tensor]:
        for letter in order:
            if letter == "a":
                tokens = tokens + self.block.attn(self.block.norm1(tokens))
            elif letter == "r":
                regions = self.adjustment(tokens, regions)
            elif letter == "s":
                tokens = self.glance(tokens, regions, features)
            else:
                tokens = tokens + self.block.mlp(self.block.norm2(tokens))
        return tokens, regions

    return replace(V1Unit, "forward", forward)


def unit_like(order: str, stage: Callable[[int], int] = lambda step: step) -> Mistake:
    """Steps: e stage embedding, s sampling + mixing, p RoI encoding, a attention, m MLP, r RoI adjustment."""

    def forward(
        self: BootstrappedUnit, tokens: Tensor, regions: Tensor, features: Tensor, step: int
    ) -> tuple[Tensor, Tensor]:
        for letter in order:
            if letter == "e":
                tokens = tokens + self.stage_embedding[stage(step)]
            elif letter == "s":
                tokens = self.glance(tokens, regions, features)
            elif letter == "p":
                tokens = tokens + self.encoding(regions)
            elif letter == "a":
                tokens = tokens + self.block.attn(self.block.norm1(tokens))
            elif letter == "r":
                regions = self.adjustment(tokens, regions)
            else:
                tokens = tokens + self.block.mlp(self.block.norm2(tokens))
        return tokens, regions

    return replace(BootstrappedUnit, "forward", forward)


def last_unit_like(order: str) -> Mistake:
    def forward(
        self: BootstrappedLastUnit, tokens: Tensor, regions: Tensor, features: Tensor, step: int
    ) -> tuple[Tensor, Tensor]:
        for letter in order:
            tokens = self.glance(tokens, regions, features) if letter == "s" else tokens + self.encoding(regions)
        return tokens, regions

    return replace(BootstrappedLastUnit, "forward", forward)


def adjustment_like(*, norm: bool = True, activation: Callable[[Tensor], Tensor] = F.gelu) -> Mistake:
    def forward(self: RoIAdjustment, tokens: Tensor, regions: Tensor) -> Tensor:
        tokens = self.norm(tokens) if norm else tokens
        if self.hidden is not None:
            tokens = activation(self.hidden(tokens))
        return rois.adjust_rois(regions, self.linear(tokens))

    return replace(RoIAdjustment, "forward", forward)


def offsets_like(*, norm: bool = True, base: bool = True) -> Mistake:
    def forward(self: SamplingPoints, tokens: Tensor, regions: Tensor) -> Tensor:
        offsets = self.linear(self.norm(tokens) if norm else tokens) + (self.base if base else 0)
        return rois.place_points(regions, offsets.unflatten(-1, (-1, 2)))

    return replace(SamplingPoints, "forward", forward)


def focus_like(change: Callable[[Tensor], Tensor]) -> Mistake:
    """RoIs are changed before every unit, e.g. clamped."""

    def mistake(patch: Patch, encoder: SparseFormer) -> None:
        def hook(module: nn.Module, inputs: tuple) -> tuple:
            tokens, regions, *others = inputs
            return tokens, change(regions), *others

        encoder.focus.repeated_unit.register_forward_pre_hook(hook)
        encoder.focus.last_unit.register_forward_pre_hook(hook)

    return mistake


def repeats_are(count: int) -> Mistake:
    def mistake(patch: Patch, encoder: SparseFormer) -> None:
        encoder.focus.repeats = count

    return mistake


def no_transition_norm(patch: Patch, encoder: SparseFormer) -> None:
    encoder.focus.transition = encoder.focus.transition[:1]


def embedding_of_first_token(patch: Patch, encoder: SparseFormer) -> None:
    embedding = encoder.focus.initial_embedding
    embedding.data = embedding.data[:1].expand_as(embedding).clone()


def rois_in(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda regions: regions.to(dtype).float()


# ---- everywhere


def eps_is(eps: float, part: str) -> Mistake:
    def mistake(patch: Patch, encoder: SparseFormer) -> None:
        for module in encoder.get_submodule(part).modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = eps

    return mistake


def heads_are(count: int, part: str) -> Mistake:
    def mistake(patch: Patch, encoder: SparseFormer) -> None:
        for module in encoder.get_submodule(part).modules():
            if isinstance(module, Attention):
                module.head_dim = module.num_heads * module.head_dim // count
                module.num_heads = count
                module.scale = module.head_dim**-0.5

    return mistake


def activation_is(activation: nn.Module, part: str) -> Mistake:
    def mistake(patch: Patch, encoder: SparseFormer) -> None:
        for module in encoder.get_submodule(part).modules():
            if hasattr(module, "fc1"):
                module.act = activation

    return mistake


def qkv_interleaved_by_head(patch: Patch, encoder: SparseFormer) -> None:
    for module in encoder.modules():
        if isinstance(module, Attention):
            for tensor in (module.qkv.weight, module.qkv.bias):
                heads = tensor.data.unflatten(0, (module.num_heads, 3, -1))
                tensor.data = heads.transpose(0, 1).flatten(0, 2).contiguous()


def unscaled_attention(patch: Patch, encoder: SparseFormer) -> None:
    for module in encoder.modules():
        if isinstance(module, Attention):
            patch.setattr(module, "scale", 1.0)
            patch.setattr(module, "fused_attn", False)


def cortex_like(change: Callable[[Cortex, Tensor], tuple[Tensor, Tensor]]) -> Mistake:
    """`change` gives what enters the blocks (from the latent tokens) and, from what leaves them, the pooled output."""

    def forward(self: Cortex, tokens: Tensor) -> tuple[Tensor, ...]:
        states = [change(self, tokens)[0]]
        for block in self.trunk.blocks:
            states.append(block(states[-1]))
        return tuple(states)

    def mistake(patch: Patch, encoder: SparseFormer) -> None:
        patch.setattr(Cortex, "forward", forward)
        patch.setattr(Cortex, "pool", lambda self, tokens: change(self, tokens)[1])

    return mistake


def with_cls(cortex: Cortex, tokens: Tensor) -> Tensor:
    assert cortex.cls_embedding is not None
    return torch.cat([cortex.cls_embedding.expand(len(tokens), 1, -1), tokens], dim=1)


def cls_last(cortex: Cortex, tokens: Tensor) -> tuple[Tensor, Tensor]:
    trunk = cortex.trunk
    return with_cls(cortex, tokens).roll(-1, dims=1), trunk.head(trunk.norm(tokens[:, -1]))


def mean_instead_of_cls(cortex: Cortex, tokens: Tensor) -> tuple[Tensor, Tensor]:
    return with_cls(cortex, tokens), cortex.trunk.head(cortex.trunk.norm(tokens).mean(dim=1))


def no_final_norm(cortex: Cortex, tokens: Tensor) -> tuple[Tensor, Tensor]:
    return with_cls(cortex, tokens), cortex.trunk.head(tokens[:, 0])


def normalised_output(cortex: Cortex, tokens: Tensor) -> tuple[Tensor, Tensor]:
    output = cortex.trunk.head(cortex.trunk.norm(tokens[:, 0]))
    return with_cls(cortex, tokens), F.normalize(output, dim=-1)


def extra_pre_norm(cortex: Cortex, tokens: Tensor) -> tuple[Tensor, Tensor]:
    entering = with_cls(cortex, tokens)
    return F.layer_norm(entering, entering.shape[-1:]), cortex.trunk.head(cortex.trunk.norm(tokens[:, 0]))


def norm_before_mean(cortex: Cortex, tokens: Tensor) -> tuple[Tensor, Tensor]:
    return tokens, cortex.trunk.head(cortex.trunk.fc_norm(tokens).mean(dim=1))


def first_token_instead_of_mean(cortex: Cortex, tokens: Tensor) -> tuple[Tensor, Tensor]:
    return tokens, cortex.trunk.head(cortex.trunk.fc_norm(tokens[:, 0]))


Rows = dict[str, tuple[tuple[str, ...], Mistake]]
STEM: Rows = {
    "unbiased variance": (BOTH, stem_like(correction=1)),
    "eps outside the root": (BOTH, stem_like(eps_in_root=False)),
    "eps 1e-6": (BOTH, stem_like(eps=1e-6)),
    "eps 0": (BOTH, stem_like(eps=1e-12)),
    "no ReLU": (BOTH, stem_like(relu=False)),
    "unpadded pooling": (BOTH, stem_like(pool=0)),
    "normalised before pooling": (BOTH, replace(stem.Stem, "forward", normalise_before_pooling)),
    "x and y exchanged": (BOTH, transposed_image),
}
GEOMETRY: Rows = {
    "align_corners": (BOTH, sample_like(corners=True)),
    "grid = point": (BOTH, sample_like(grid=lambda p: p)),
    "grid = 2 point": (BOTH, sample_like(grid=lambda p: 2 * p)),
    "grid (y, x)": (BOTH, sample_like(grid=lambda p: 2 * p.flip(-1) - 1)),
    "points clamped to the image": ((V1,), sample_like(grid=lambda p: 2 * p.clamp(0, 1) - 1)),
    "nearest": (BOTH, sample_like(mode="nearest")),
    "bicubic": (BOTH, sample_like(mode="bicubic")),
    "padding zeros": ((BTSP, AUGREG), padding_is("zeros")),
    "padding border": ((V1,), padding_is("border")),
    "padding reflection": (BOTH, padding_is("reflection")),
    "biased std": (BOTH, points_like(unbiased=False)),
    "3 std + eps": ((V1,), points_like(eps_outside=True)),
    "no eps": ((V1,), points_like(eps=0)),
    "eps 1e-6": ((V1,), points_like(eps=1e-6)),
    "factor 1": (BOTH, points_like(factor=1)),
    "factor 2": (BOTH, points_like(factor=2)),
    "half the size": (BOTH, points_like(half=0.5)),
    "offsets not centred": (BOTH, points_like(centred=False)),
    "absolute size in sampling": ((BTSP,), points_like(signed=False)),
    "from the corner": (BOTH, points_like(corner=True)),
    "all x, then all y": (BOTH, points_like(interleaved=False)),
    "no LN before the offsets": (BOTH, offsets_like(norm=False)),
    "no base offsets": (BOTH, offsets_like(base=False)),
    "signed size in the adjustment": (BOTH, adjust_like(absolute=False)),
    "new size in the centre's update": (BOTH, adjust_like(new_size=True)),
    "absolute centre update": (BOTH, adjust_like(relative=False)),
    "size × (1 + dwh)": (BOTH, adjust_like(exp=False)),
    "no LN before the adjustment": (BOTH, adjustment_like(norm=False)),
    "adjustment without GELU": ((BTSP,), adjustment_like(activation=lambda x: x)),
    "adjustment with QuickGELU": ((BTSP,), adjustment_like(activation=quick_gelu)),
    "adjustment with ReLU": ((BTSP,), adjustment_like(activation=F.relu)),
    "RoIs clamped": (BOTH, focus_like(lambda r: r.clamp(0, 1))),
    "RoIs in bfloat16": (BOTH, focus_like(rois_in(torch.bfloat16))),
    "RoIs in float16": (BOTH, focus_like(rois_in(torch.float16))),
    "RoIs sorted": (
        (BTSP,),
        focus_like(lambda r: torch.cat([r.unflatten(-1, (2, 2)).amin(-2), r.unflatten(-1, (2, 2)).amax(-2)], -1)),
    ),
}
ENCODING: Rows = {
    "no π": ((BTSP,), encode_like(scale=1)),
    "2π": ((BTSP,), encode_like(scale=2 * math.pi)),
    "top 10000": ((BTSP,), encode_like(top=10000)),
    "top 64": ((BTSP,), encode_like(top=64)),
    "without the end point": ((BTSP,), encode_like(endpoint=False)),
    "linear frequencies": ((BTSP,), encode_like(geometric=False)),
    "sine and cosine of the same frequencies": ((BTSP,), encode_like(layout=halves)),
    "sines and cosines interleaved": ((BTSP,), encode_like(layout=interleave)),
    "cosines first": (
        (BTSP,),
        encode_like(layout=lambda a: torch.cat([a[..., 1::2].cos(), a[..., 0::2].sin()], -1).flatten(-2)),
    ),
    "cosines of the even-indexed": (
        (BTSP,),
        encode_like(layout=lambda a: torch.cat([a[..., 1::2].sin(), a[..., 0::2].cos()], -1).flatten(-2)),
    ),
    "coordinates innermost": (
        (BTSP,),
        encode_like(layout=lambda a: torch.cat([a[..., 0::2].sin(), a[..., 1::2].cos()], -1).mT.flatten(-2)),
    ),
    "centre and size": ((BTSP,), encode_like(before=lambda r: torch.cat(rois.to_center_size(r), -1))),
    "clamped": ((BTSP,), encode_like(before=lambda r: r.clamp(0, 1))),
    "y first": ((BTSP,), encode_like(before=lambda r: r[..., [1, 0, 3, 2]])),
    "bfloat16 RoIs": ((BTSP,), encode_like(before=rois_in(torch.bfloat16))),
}
MIXING: Rows = {
    "M transposed": (BOTH, mixing_like(transpose_m=True)),
    "S transposed": (BOTH, mixing_like(transpose_s=True)),
    "S first in the parameters": (BOTH, mixing_like(points_first=True)),
    "GELU in the generator": (BOTH, mixing_like(between=F.gelu)),
    "points mixed before channels": ((V1,), mixing_like(s_first=True)),
    "GELU between the mixings": ((BTSP,), mixing_like(channel_gelu=True)),
    "no GELU between the mixings": ((V1,), mixing_like(channel_gelu=False)),
    "no GELU at the end": (BOTH, mixing_like(final_gelu=False)),
    "GELU before the biases": ((V1,), mixing_like(beta_after=True)),
    "no m_beta": ((V1,), mixing_like(use_m_beta=False)),
    "no s_beta": ((V1,), mixing_like(use_s_beta=False)),
    "QuickGELU": (BOTH, mixing_like(gelu=quick_gelu)),
    "tanh GELU": (BOTH, mixing_like(gelu=tanh_gelu)),
    "ReLU": (BOTH, mixing_like(gelu=F.relu)),
    "flattened as c·P + p": (BOTH, mixing_like(points_last=True)),
    "no residual": (BOTH, replace(SampleAndMix, "forward", without_residual)),
}
UNITS: Rows = {
    "v1: sampling before the adjustment": ((V1,), v1_unit_like("asrm")),
    "v1: adjustment first": ((V1,), v1_unit_like("rasm")),
    "v1: adjustment last": ((V1,), v1_unit_like("asmr")),
    "v1: MLP before sampling": ((V1,), v1_unit_like("arms")),
    "v1: sampling before attention": ((V1,), v1_unit_like("rsam")),
    "v1: no MLP": ((V1,), v1_unit_like("ars")),
    "no stage embedding": ((BTSP,), unit_like("spamr")),
    "stage embedding of the first step": ((BTSP,), unit_like("espamr", stage=lambda step: 0)),
    "stage embeddings backwards": ((BTSP,), unit_like("espamr", stage=lambda step: 3 - step)),
    "stage embedding after sampling": ((BTSP,), unit_like("sepamr")),
    "RoI encoding before sampling": ((BTSP,), unit_like("epsamr")),
    "RoI encoding after attention": ((BTSP,), unit_like("esapmr")),
    "no RoI encoding": ((BTSP,), unit_like("esamr")),
    "MLP before attention": ((BTSP,), unit_like("espmar")),
    "adjustment before the MLP": ((BTSP,), unit_like("esparm")),
    "adjustment before sampling": ((BTSP,), unit_like("erspam")),
    "adjustment after sampling": ((BTSP,), unit_like("esrpam")),
    "last unit: encoding before sampling": ((BTSP,), last_unit_like("ps")),
    "last unit: no encoding": ((BTSP,), last_unit_like("s")),
    "last unit: no sampling": ((BTSP,), last_unit_like("p")),
    "two repetitions": (BOTH, repeats_are(2)),
    "v1: no LN in the transition": ((V1,), no_transition_norm),
    "v1: one initial embedding for all": ((V1,), embedding_of_first_token),
    "focus: LN eps 1e-5 for 1e-6": ((V1,), eps_is(1e-5, "focus")),
    "v1: head dim 64 in the focus": ((V1,), heads_are(1, "focus.repeated_unit")),
    "v1: head dim 64 in the last unit": ((V1,), heads_are(2, "focus.last_unit")),
    "64 heads in the focus": ((BTSP,), heads_are(64, "focus")),
    "focus: QuickGELU": (BOTH, activation_is(QuickGELU(), "focus")),
    "focus: tanh GELU": (BOTH, activation_is(nn.GELU(approximate="tanh"), "focus")),
    "qkv interleaved by head": (BOTH, qkv_interleaved_by_head),
    "attention not scaled": (BOTH, unscaled_attention),
}
CORTEX: Rows = {
    "exact GELU": ((BTSP,), activation_is(nn.GELU(), "cortex")),
    "QuickGELU": ((V1, AUGREG), activation_is(QuickGELU(), "cortex")),
    "tanh GELU": ((V1, AUGREG), activation_is(nn.GELU(approximate="tanh"), "cortex")),
    "head dim 64": ((V1,), heads_are(2, "cortex")),
    "64 heads": ((BTSP, AUGREG), heads_are(64, "cortex")),
    "CLS last": ((BTSP, AUGREG), cortex_like(cls_last)),
    "mean instead of CLS": ((BTSP, AUGREG), cortex_like(mean_instead_of_cls)),
    "no final norm": ((BTSP, AUGREG), cortex_like(no_final_norm)),
    "normalised output": ((BTSP, AUGREG), cortex_like(normalised_output)),
    "CLIP's pre-norm kept": ((BTSP, AUGREG), cortex_like(extra_pre_norm)),
    "v1: norm before mean": ((V1,), cortex_like(norm_before_mean)),
    "v1: first token instead of mean": ((V1,), cortex_like(first_token_instead_of_mean)),
}
MISTAKES = {"stem": STEM, "RoIs": GEOMETRY, "encoding": ENCODING, "mixing": MIXING, "unit": UNITS, "cortex": CORTEX}
CASES = [
    pytest.param(name, mistake, id=f"{part}: {what} ({name.split('_')[-2 if name != V1 else 0]})")
    for part, rows in MISTAKES.items()
    for what, (names, mistake) in rows.items()
    for name in names
]


@pytest.mark.parametrize(("name", "mistake"), CASES)
def test_parity_fails_with_the_mistake(name: str, mistake: Mistake, monkeypatch: Patch) -> None:
    encoder = load_official(name)
    mistake(monkeypatch, encoder)
    errors = relative_errors(encoder, name, "a")
    assert max(errors.values()) > 1, f"not caught: {errors}"


IDENTITIES: Rows = {
    "stem": (BOTH, stem_like()),
    "sample_features": (BOTH, sample_like()),
    "place_points": (BOTH, points_like()),
    "adjust_rois": (BOTH, adjust_like()),
    "encode_rois": ((BTSP,), encode_like()),
    "mixing": (BOTH, mixing_like()),
    "v1 unit": ((V1,), v1_unit_like("arsm")),
    "unit": ((BTSP,), unit_like("espamr")),
    "last unit": ((BTSP,), last_unit_like("sp")),
    "adjustment": (BOTH, adjustment_like()),
    "offsets": (BOTH, offsets_like()),
    "RoI hook": (BOTH, focus_like(lambda r: r)),
}


@pytest.mark.parametrize(
    ("name", "identity"), [pytest.param(n, m, id=f"{what}-{n}") for what, (ns, m) in IDENTITIES.items() for n in ns]
)
def test_parity_holds_without_a_mistake(name: str, identity: Mistake, monkeypatch: Patch) -> None:
    """The rows above differ from the faithful model by the mistake alone: their default arguments change nothing."""
    encoder = load_official(name)
    identity(monkeypatch, encoder)
    assert max(relative_errors(encoder, name, "a").values()) <= 1


def test_every_mistake_changes_a_name_that_is_used() -> None:
    """`replace` patches names where the encoder looks them up."""
    assert mixing.AdaptiveMixing is AdaptiveMixing
    assert {"place_points", "adjust_rois", "sample_features", "encode_rois"} <= vars(focusing).keys()
