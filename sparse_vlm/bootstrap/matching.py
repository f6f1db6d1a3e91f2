"""The start of a bootstrap: latent tokens of the magnitude that the inherited blocks are used to."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparse_vlm.bootstrap.teachers.teacher import Teacher
from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.focusing import BootstrappedLastUnit
from sparse_vlm.errors import UserError


@dataclass(frozen=True)
class TokenMatch:
    """Root mean squares of the tokens that enter the first inherited block.

    Attributes:
        teacher: of the teacher's patch tokens.
        before, after: of the student's latent tokens, before and after the match.
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
    """Gives a new student's latent tokens the teacher's mean and standard deviation, channel by channel, where they
    enter the first inherited block; CLS and registers become the teacher's mean there. In place.

    Ours. A block adds to its tokens what it is used to add to the teacher's. DINOv2-S's enter block 4 with a root mean
    square of 0.05; beside latent tokens of 1, as they are initialised, what eight blocks add is lost, and nothing
    that was inherited has an effect until training has found the magnitude.

    Args:
        student: of `bootstrap_from` and untrained: its mixing matrices do not depend on its tokens yet, which is why
            scaling three Linear layers scales the tokens exactly.
        teacher: the one it inherits from.
        images: float[B, 3, S, S] at the teacher's input size.

    Raises:
        UserError: the student's blocks are not the teacher's last ones.
    """
    dropped = teacher.cortex.depth - student.config.cortex.depth
    unit = student.focus.last_unit
    if dropped < 0 or not isinstance(unit, BootstrappedLastUnit):
        raise UserError(f"The tokens to match are those of a student bootstrapped from {teacher.name}; this is none.")
    prefix = student.num_prefix_tokens
    with teacher.tokens_entering(dropped) as entering:
        teacher(images.to(next(teacher.trunk.parameters()).dtype))
    wanted = entering[0].float()
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
    """float[B, 3, H, W] -> float32[B, n, C], as they enter the cortex."""
    tokens, _ = student.focus(student.stem(images))
    return tokens.float()


def _statistics(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """float32[B, n, C] -> mean and standard deviation of each channel, float32[C] each."""
    rows = tokens.flatten(0, 1)
    return rows.mean(0), rows.std(0, correction=0).clamp_min(1e-6)


def _rms(tokens: Tensor) -> float:
    return tokens.square().mean().sqrt().item()
