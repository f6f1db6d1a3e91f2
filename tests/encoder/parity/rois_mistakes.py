"""Mistakes in the geometry and the encoding of RoIs."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_vlm.encoder import SparseFormer, focusing, rois
from sparse_vlm.encoder.focusing import (
    RoIAdjustment,
    SampleAndMix,
    SamplingPoints,
)
from tests.encoder.parity.mistakes import (
    AUGREG,
    BOTH,
    BTSP,
    V1,
    Mistake,
    Patch,
    Rows,
    quick_gelu,
    replace,
)


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
    """The mistake of changing RoIs before every unit, e.g. clamping them."""

    def mistake(patch: Patch, encoder: SparseFormer) -> None:
        def hook(module: nn.Module, inputs: tuple) -> tuple:
            tokens, regions, *others = inputs
            return tokens, change(regions), *others

        encoder.focus.repeated_unit.register_forward_pre_hook(hook)
        encoder.focus.last_unit.register_forward_pre_hook(hook)

    return mistake


def rois_in(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda regions: regions.to(dtype).float()


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
FAITHFUL: Rows = {
    "sample_features": (BOTH, sample_like()),
    "place_points": (BOTH, points_like()),
    "adjust_rois": (BOTH, adjust_like()),
    "encode_rois": ((BTSP,), encode_like()),
    "adjustment": (BOTH, adjustment_like()),
    "offsets": (BOTH, offsets_like()),
    "RoI hook": (BOTH, focus_like(lambda r: r)),
}
