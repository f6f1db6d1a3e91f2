"""Initialisation of all new parts. timm initialises the blocks of the cortex."""

import math

import torch
from torch import nn

from sparse_vlm.encoder.cortex import Cortex
from sparse_vlm.encoder.float32 import LINEAR, Float32Linear
from sparse_vlm.encoder.focusing import (
    AdaptiveMixing,
    BootstrappedUnit,
    FocusingTransformer,
    RoIAdjustment,
    SamplingPoints,
)
from sparse_vlm.encoder.stem import Stem


def init_weights(stem: Stem, focus: FocusingTransformer, cortex: Cortex) -> None:
    """Initialise the new parts in place, as the authors' library does, except for the RoIs (see rois.py).

    | parameter                                               | initialisation                                  |
    |---------------------------------------------------------|-------------------------------------------------|
    | Linear                                                  | trunc-normal 0.02, bias 0                       |
    | LayerNorm                                               | 1 / 0                                           |
    | LN heading the generator, the offsets and the adjustment| gain width^-0.5                                 |
    | last Linear of these three                              | 0; generator bias xavier-uniform per matrix     |
    | base offsets                                            | √P grid of cell centres − 0.5, else uniform ±0.5|
    | base offsets in time                                    | spread evenly over ±0.5, see `spread_times`     |
    | initial embedding                                       | trunc-normal 1                                  |
    | CLS, register and stage embeddings                      | normal 1                                        |
    | stem convolution                                        | kaiming-normal, fan_out, bias 0                 |
    """
    nn.init.kaiming_normal_(stem.conv.weight, mode="fan_out", nonlinearity="relu")
    if stem.conv.bias is not None:
        nn.init.zeros_(stem.conv.bias)
    focus.apply(_init_linear)
    for module in focus.modules():
        if isinstance(module, AdaptiveMixing):
            _init_head(module.norm, module.generate)
            _init_generator_bias(module)
        elif isinstance(module, SamplingPoints):
            _init_head(module.norm, module.linear)
            with torch.no_grad():
                module.base.copy_(_base_offsets(module.base.numel() // module.axes, module.axes))
        elif isinstance(module, RoIAdjustment):
            _init_head(module.norm, module.linear)
        elif isinstance(module, BootstrappedUnit):
            nn.init.normal_(module.stage_embedding)
    nn.init.trunc_normal_(focus.initial_embedding, std=1.0)
    for prefix in (cortex.cls_embedding, cortex.register_embeddings):
        if prefix is not None:
            nn.init.normal_(prefix)


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, LINEAR):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _init_head(norm: nn.LayerNorm, last: nn.Linear | Float32Linear) -> None:
    nn.init.constant_(norm.weight, norm.normalized_shape[0] ** -0.5)
    nn.init.zeros_(last.weight)


def _init_generator_bias(mixing: AdaptiveMixing) -> None:
    split = mixing.channels * mixing.channels
    bias = mixing.generate.bias.data
    nn.init.xavier_uniform_(bias[:split].view(mixing.channels, mixing.channels))
    nn.init.xavier_uniform_(bias[split:].view(mixing.points_out, mixing.points))


def _base_offsets(points: int, axes: int = 2) -> torch.Tensor:
    """float32[axes·P], interleaved x, y, for clips t."""
    side = math.isqrt(points)
    if side * side == points:
        centers = (torch.arange(side, dtype=torch.float32) + 0.5) / side - 0.5
        y, x = torch.meshgrid(centers, centers, indexing="ij")
        places = torch.stack([x, y], dim=-1).flatten(0, 1)
    else:
        places = torch.rand(points, 2) - 0.5
    if axes == 3:
        places = torch.cat([places, spread_times(points)[:, None]], dim=-1)
    return places.flatten()


def spread_times(points: int) -> torch.Tensor:
    """float32[P] in ±0.5: multiples of the golden ratio modulo 1, so that points which are neighbours differ in time.

    Zeros would be a trap: the spread of a token's offsets is normalised, which multiplies them by 33,000 if they are
    all equal. The smallest step of an optimiser would throw the points all over the span, in the order of the signs of
    their gradients.
    """
    golden = (math.sqrt(5) - 1) / 2
    return (golden * torch.arange(points, dtype=torch.float64) % 1 - 0.5).float()
