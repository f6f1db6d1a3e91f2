"""Matching of statistics before training: latent tokens get the magnitude that the inherited blocks expect."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparse_vlm.bootstrap.teachers import Teacher
from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.focusing import BootstrappedLastUnit
from sparse_vlm.errors import UserError


@dataclass(frozen=True)
class TokenMatch:
    """Root mean squares of the tokens that enter the first inherited block.

    Attributes:
        teacher: root mean square of the teacher's patch tokens.
        before, after: root mean square of the student's latent tokens, before and after matching.
    """

    teacher: float
    before: float
    after: float

    def __str__(self) -> str:
        return (
            f"Latent tokens start with the teacher's statistics: root mean square {self.after:.3g} "
            f"(the teacher's {self.teacher:.3g}; {self.before:.3g} before)."
        )


@torch.no_grad()
def match_tokens(student: SparseFormer, teacher: Teacher, images: Tensor) -> TokenMatch:
    """Match the statistics of a new student's latent tokens to the teacher's, in place.

    Where they enter the first inherited block, the latent tokens get the teacher's mean and standard deviation in each
    channel, and CLS and registers are set to the teacher's mean. This is not part of the paper. The update that a block
    adds has the magnitude of the teacher's tokens. In DINOv2-S, tokens enter block 4 with a root mean square of 0.05.
    Latent tokens are initialised with 1, next to which the updates of eight blocks are negligible: nothing inherited
    would have an effect until training has found the magnitude.

    Args:
        student: from `bootstrap_from`, untrained: its mixing matrices do not depend on its tokens yet, so scaling three
            Linear layers scales the tokens exactly.
        teacher: the student's teacher.
        images: float[B, 3, S, S] at the teacher's input size.

    Raises:
        UserError: the student's blocks are not the teacher's last ones.
    """
    dropped = teacher.cortex.depth - student.config.cortex.depth
    unit = student.focus.last_unit
    if dropped < 0 or not isinstance(unit, BootstrappedLastUnit):
        raise UserError(f"Cannot match token statistics: the student was not bootstrapped from {teacher.name}.")
    prefix = student.num_prefix_tokens
    layer = -student.config.cortex.depth - 1
    with teacher.recorded([layer]) as states:
        teacher(images.to(next(teacher.trunk.parameters()).dtype))
    wanted = states[layer].float()
    latent = _latent_tokens(student, images)
    mean, std = _statistics(wanted[:, prefix:])
    old_mean, old_std = _statistics(latent)
    scale = std / old_std
    transition: Any = student.focus.transition[0]
    linears: list[Any] = [transition, unit.sampling.mixing.out_proj, unit.encoding.linear]
    for linear in linears:
        linear.weight.mul_(scale[:, None])
        linear.bias.mul_(scale)
    transition.bias.add_(mean - scale * old_mean)
    registers = student.num_register_tokens
    means = wanted[:, :prefix].mean(0)
    if student.cortex.cls_embedding is not None:
        student.cortex.cls_embedding.copy_(means[:1])
    if student.cortex.register_embeddings is not None:
        student.cortex.register_embeddings.copy_(means[prefix - registers :])
    return TokenMatch(_rms(wanted[:, prefix:]), _rms(latent), _rms(_latent_tokens(student, images)))


def _latent_tokens(student: SparseFormer, images: Tensor) -> Tensor:
    """Images float[B, 3, H, W] -> latent tokens float32[B, n, C] that enter the cortex."""
    tokens, _ = student.focus(student.stem(images))
    return tokens.float()


def _statistics(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens float32[B, n, C] -> mean and standard deviation of each channel, float32[C] each."""
    rows = tokens.flatten(0, 1)
    return rows.mean(0), rows.std(0, correction=0).clamp_min(1e-6)


def _rms(tokens: Tensor) -> float:
    return tokens.square().mean().sqrt().item()
