"""Inflation: the weights of an image encoder, with a time axis added."""

from dataclasses import replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_vlm.encoder.config import SparseFormerConfig
from sparse_vlm.encoder.focusing import RoIAdjustment, RoIEncoding, SamplingPoints
from sparse_vlm.encoder.init import spread_times
from sparse_vlm.encoder.model import SparseFormer
from sparse_vlm.encoder.rois import over_time


def inflate_config(config: SparseFormerConfig, spans: int) -> SparseFormerConfig:
    """Configuration of an image encoder whose tokens are repeated for each of `spans` spans of time."""
    return replace(config, focus=replace(config.focus, tokens=spans * config.focus.tokens))


@torch.no_grad()
def inflate_weights(encoder: SparseFormer, spans: int) -> dict[str, Tensor]:
    """Weights of an image encoder for an encoder of clips with the configuration of `inflate_config`.

    | weight                            | value                                            |
    |-----------------------------------|--------------------------------------------------|
    | initial RoIs                      | the image's, once for each of `spans` spans      |
    | initial embeddings of v1          | the image's, once for each of `spans` spans      |
    | offsets from a token, adjustments | the image's; 0 for time                          |
    | base offsets                      | the image's; for time `spread_times`             |
    | encoding of the times             | LN 1 / 0, Linear 0                               |
    | everything else                   | the image's                                      |
    """
    weights = dict(encoder.state_dict())
    rois, edges = weights["focus.initial_rois.weight"], [span / spans for span in range(spans + 1)]
    weights["focus.initial_rois.weight"] = torch.cat([over_time(rois, *span) for span in pairwise(edges)])
    if encoder.config.focus.generation == "v1":
        weights["focus.initial_embedding"] = weights["focus.initial_embedding"].repeat(spans, 1)
    for name, module in encoder.named_modules():
        if isinstance(module, SamplingPoints | RoIAdjustment):
            weights[f"{name}.linear.weight"] = _add_time_rows(weights[f"{name}.linear.weight"])
        if isinstance(module, SamplingPoints):
            places = weights[f"{name}.base"].unflatten(0, (-1, 2))
            times = spread_times(len(places)).to(places)
            weights[f"{name}.base"] = torch.cat([places, times[:, None]], dim=-1).flatten()
        if isinstance(module, RoIEncoding):
            own = {key: weights[f"{name}.{key}"] for key in module.state_dict()}
            weights |= {f"{name}.time.{key}": torch.zeros_like(value) for key, value in own.items()}
            weights[f"{name}.time.norm.weight"] = torch.ones_like(own["norm.weight"])
    return weights


def _add_time_rows(weight: Tensor) -> Tensor:
    """Rows (x, y, x, y, …) -> rows (x, y, t, x, y, t, …) with zeros for t: float[2·k, W] -> float[3·k, W]."""
    return F.pad(weight.unflatten(0, (-1, 2)), (0, 0, 0, 1)).flatten(0, 1)
