"""Mistakes in the cortex."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.layers import QuickGELU
from torch import Tensor, nn

from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.cortex import Cortex
from tests.encoder.parity.mistakes import (
    AUGREG,
    BTSP,
    V1,
    Mistake,
    Patch,
    Rows,
    activation_is,
    heads_are,
)


def cortex_like(change: Callable[[Cortex, Tensor], tuple[Tensor, Tensor]]) -> Mistake:
    """`change` maps latent tokens to the input of the blocks, and the output of the blocks to the pooled output."""

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
