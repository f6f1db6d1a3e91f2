"""A CLIP-like teacher and the SparseFormer bootstrapped from it, which share the teacher's text encoder."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sparse_vlm.bootstrap.teachers import TextEncoder, open_teacher
from sparse_vlm.encoder import Preprocessing, SparseFormer
from sparse_vlm.errors import UserError


class ImageEncoder(NamedTuple):
    """One of the two image encoders.

    Attributes:
        encode: images float[B, 3, H, W] of any dtype -> embeddings float32[B, D].
        preprocessing: preprocessing that its images need.
    """

    encode: Callable[[Tensor], Tensor]
    preprocessing: Preprocessing


def open_pair(
    teacher_spec: str,
    encoder_dir: Path,
    device: torch.device | str,
    dtype: torch.dtype,
    counts: Sequence[int] = (),
) -> tuple[TextEncoder, dict[str, ImageEncoder]]:
    """Open a teacher with a text encoder, and its student.

    Args:
        teacher_spec: see `open_teacher`.
        encoder_dir: directory of a SparseFormer.
        device: where both compute.
        dtype: dtype of both image encoders; the text encoder keeps its own.
        counts: numbers of latent tokens to use the student with, besides its own.

    Returns:
        The text encoder, and the image encoders as "teacher", "student", and "student_N_tokens" for each count N.
    """
    teacher = open_teacher(teacher_spec).to(device)
    if teacher.text is None:
        raise UserError(
            f"The teacher {teacher_spec!r} has no text encoder, which zero-shot evaluation needs: name an open_clip "
            "teacher."
        )
    teacher.trunk.to(dtype)
    student = SparseFormer.from_pretrained(encoder_dir).to(device, dtype)
    preprocessing = student.config.preprocessing

    def encode(images: Tensor, tokens: int | None = None) -> Tensor:
        return student(images.to(dtype), tokens=tokens).pooled.float()

    return teacher.text, {
        "teacher": ImageEncoder(lambda images: teacher(images.to(dtype)).float(), teacher.preprocessing),
        "student": ImageEncoder(encode, preprocessing),
        **{f"student_{n}_tokens": ImageEncoder(partial(encode, tokens=n), preprocessing) for n in counts},
    }
