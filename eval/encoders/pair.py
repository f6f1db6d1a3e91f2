"""A teacher and the SparseFormer bootstrapped from it, which share a CLIP-like teacher's text encoder."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparse_vlm.bootstrap.teachers import Teacher, TextEncoder, open_teacher
from sparse_vlm.encoder import Preprocessing, SparseFormer
from sparse_vlm.encoder.rois import lay_out_grid
from sparse_vlm.errors import UserError


class Encoded(NamedTuple):
    """What one forward pass computes of B images.

    Attributes:
        pooled: float[B, D], the pooled output: CLS or average, normalised, with the head of the weights if they have
            one.
        last: float[B, n, C], output of the last block before the final norm: the latent tokens of a SparseFormer, the
            patch tokens of a teacher; without CLS and registers.
        penultimate: float[B, n, C], the same one block earlier: hidden state -2.
        rois: float32[B, n, 4], the RoIs of the latent tokens after the last adjustment, or the teacher's patches.
    """

    pooled: Tensor
    last: Tensor
    penultimate: Tensor
    rois: Tensor


class ImageEncoder(NamedTuple):
    """An image encoder: the teacher, or the student with a number of tokens.

    Attributes:
        encode: images float[B, 3, H, W] of any dtype -> `Encoded`.
        preprocessing: preprocessing that its images need.
        tokens: number of tokens per image, without CLS and registers.
        module: holds the weights.
        settings: everything else that determines the results, as JSON values.
    """

    encode: Callable[[Tensor], Encoded]
    preprocessing: Preprocessing
    tokens: int
    module: nn.Module
    settings: dict[str, Any]

    def embed(self, images: Tensor) -> Tensor:
        """Images float[B, 3, H, W] of any dtype -> pooled outputs float32[B, D]."""
        return self.encode(images).pooled.float()


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
    trunk = teacher.trunk.to(dtype)
    places = lay_out_grid(*teacher.grid)
    patches = len(places)

    def encode(images: Tensor) -> Encoded:
        with teacher.recorded((-1, -2)) as states:
            pooled = teacher(images.to(dtype))
        rois = places.to(images.device).expand(len(images), -1, -1)
        return Encoded(pooled, states[-1][:, -patches:], states[-2][:, -patches:], rois)

    settings = {"teacher": asdict(teacher.cortex), "dtype": str(dtype)}
    return ImageEncoder(encode, teacher.preprocessing, patches, trunk, settings)


def student_encoders(
    encoder_dir: Path, device: torch.device | str, dtype: torch.dtype, counts: Sequence[int] = ()
) -> dict[str, ImageEncoder]:
    """Open a SparseFormer as "student", and as "student_N_tokens" for each count N.

    Args:
        encoder_dir, device, dtype, counts: see `open_pair`.
    """
    student = SparseFormer.from_pretrained(encoder_dir).to(device, dtype)
    prefix = student.num_prefix_tokens

    def encode(images: Tensor, tokens: int | None = None) -> Encoded:
        output = student(images.to(dtype), tokens=tokens)
        last, penultimate = output.tokens[:, prefix:], output.hidden_states[-2][:, prefix:]
        return Encoded(output.pooled, last, penultimate, output.rois[-1])

    def with_tokens(count: int | None) -> ImageEncoder:
        settings = {"student": student.config.to_dict(), "tokens": count, "dtype": str(dtype)}
        own = student.config.focus.tokens if count is None else count
        return ImageEncoder(partial(encode, tokens=count), student.config.preprocessing, own, student, settings)

    return {"student": with_tokens(None), **{f"student_{count}_tokens": with_tokens(count) for count in counts}}


def open_encoders(
    teacher_spec: str | None,
    encoder_dir: Path | None,
    image_size: int | None,
    layer: int | None,
    counts: Sequence[int],
    device: torch.device | str,
    dtype: torch.dtype,
) -> dict[str, ImageEncoder]:
    """Open a teacher, a SparseFormer or both; see `open_pair` for the names.

    Args:
        teacher_spec: see `open_teacher`.
        encoder_dir: directory of a SparseFormer.
        image_size, layer: see `open_teacher`.
        counts: numbers of latent tokens to use the SparseFormer with, besides its own.
        device, dtype: device and dtype of both.
    """
    if teacher_spec is None and encoder_dir is None:
        raise UserError("Nothing to evaluate: give --teacher, --encoder or both.")
    for option, value in (("--image_size", image_size), ("--teacher_layer", layer)):
        if teacher_spec is None and value is not None:
            raise UserError(f"{option} {value} is for the teacher: give --teacher, or leave it out.")
    if encoder_dir is None and counts:
        raise UserError("--tokens is for a SparseFormer: give --encoder, or leave it out.")
    encoders = {}
    if teacher_spec is not None:
        teacher = open_teacher(teacher_spec, image_size=image_size, layer=layer).to(device)
        encoders["teacher"] = teacher_encoder(teacher, dtype)
    if encoder_dir is not None:
        encoders |= student_encoders(encoder_dir, device, dtype, counts)
    return encoders
