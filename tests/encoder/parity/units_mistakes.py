"""Mistakes in the order and the parts of the units of the focusing transformer."""

from collections.abc import Callable

from timm.layers import Attention, QuickGELU
from torch import Tensor, nn

from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.focusing import (
    BootstrappedLastUnit,
    BootstrappedUnit,
    V1Unit,
)
from tests.encoder.parity.mistakes import (
    BOTH,
    BTSP,
    V1,
    Mistake,
    Patch,
    Rows,
    activation_is,
    eps_is,
    heads_are,
    replace,
)


def v1_unit_like(order: str) -> Mistake:
    """Steps: a attention, r RoI adjustment, s sampling step, m MLP."""

    def forward(self: V1Unit, tokens: Tensor, regions: Tensor, features: Tensor, step: int) -> tuple[Tensor, Tensor]:
        for letter in order:
            if letter == "a":
                tokens = tokens + self.block.attn(self.block.norm1(tokens))
            elif letter == "r":
                regions = self.adjustment(tokens, regions)
            elif letter == "s":
                tokens = self.sampling(tokens, regions, features)
            else:
                tokens = tokens + self.block.mlp(self.block.norm2(tokens))
        return tokens, regions

    return replace(V1Unit, "forward", forward)


def unit_like(order: str, stage: Callable[[int], int] = lambda step: step) -> Mistake:
    """Steps: e stage embedding, s sampling step, p RoI encoding, a attention, m MLP, r RoI adjustment."""

    def forward(
        self: BootstrappedUnit, tokens: Tensor, regions: Tensor, features: Tensor, step: int
    ) -> tuple[Tensor, Tensor]:
        for letter in order:
            if letter == "e":
                tokens = tokens + self.stage_embedding[stage(step)]
            elif letter == "s":
                tokens = self.sampling(tokens, regions, features)
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
            tokens = self.sampling(tokens, regions, features) if letter == "s" else tokens + self.encoding(regions)
        return tokens, regions

    return replace(BootstrappedLastUnit, "forward", forward)


def repeats_are(count: int) -> Mistake:
    def mistake(patch: Patch, encoder: SparseFormer) -> None:
        encoder.focus.repeats = count

    return mistake


def no_transition_norm(patch: Patch, encoder: SparseFormer) -> None:
    encoder.focus.transition = encoder.focus.transition[:1]


def embedding_of_first_token(patch: Patch, encoder: SparseFormer) -> None:
    embedding = encoder.focus.initial_embedding
    embedding.data = embedding.data[:1].expand_as(embedding).clone()


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
FAITHFUL: Rows = {
    "v1 unit": ((V1,), v1_unit_like("arsm")),
    "unit": ((BTSP,), unit_like("espamr")),
    "last unit": ((BTSP,), last_unit_like("sp")),
}
