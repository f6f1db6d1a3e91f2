"""A teacher and the SparseFormer bootstrapped from it, which share a CLIP-like teacher's text encoder."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sparse_vlm.bootstrap.teachers import Teacher, TextEncoder, open_teacher
from sparse_vlm.encoder import Preprocessing, SparseFormer
from sparse_vlm.errors import UserError


class ImageEncoder(NamedTuple):
    """An image encoder: the teacher, or the student with a number of tokens.

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
    students = student_encoders(encoder_dir, device, dtype, counts)
    return teacher.text, {"teacher": teacher_encoder(teacher, dtype), **students}


def teacher_encoder(teacher: Teacher, dtype: torch.dtype) -> ImageEncoder:
    """Return a teacher whose image encoder computes in `dtype`, on its device."""
    teacher.trunk.to(dtype)
    return ImageEncoder(lambda images: teacher(images.to(dtype)).float(), teacher.preprocessing)


def student_encoders(
    encoder_dir: Path, device: torch.device | str, dtype: torch.dtype, counts: Sequence[int] = ()
) -> dict[str, ImageEncoder]:
    """Open a SparseFormer as "student", and as "student_N_tokens" for each count N.

    Args:
        encoder_dir, device, dtype, counts: see `open_pair`.
    """
    student = SparseFormer.from_pretrained(encoder_dir).to(device, dtype)
    preprocessing = student.config.preprocessing

    def encode(images: Tensor, tokens: int | None = None) -> Tensor:
        return student(images.to(dtype), tokens=tokens).pooled.float()

    return {
        "student": ImageEncoder(encode, preprocessing),
        **{f"student_{n}_tokens": ImageEncoder(partial(encode, tokens=n), preprocessing) for n in counts},
    }
