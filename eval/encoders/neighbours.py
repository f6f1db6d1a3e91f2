"""Agreement of a student with its teacher on unlabelled images: cosine, nearest neighbours, and distinct tokens.

    python -m eval.encoders.neighbours --teacher timm:vit_small_patch14_dinov2 --encoder runs/bootstrap --images photos
    python -m eval.encoders.neighbours --teacher DIR --encoder DIR --images photos --output neighbours.json

Finds each image's nearest neighbour among the others, by the cosine of the final representations, with the teacher and
with the student. They agree if it is the same image.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from eval.encoders.arguments import add_arguments, add_encoder, add_teacher, add_teacher_options, begin, write_result
from eval.encoders.embeddings import embed_images
from sparse_vlm.bootstrap import open_teacher
from sparse_vlm.bootstrap.similarity import centered_cosine, mean_cosine
from sparse_vlm.command_line import CommandParser
from sparse_vlm.data.images.sources import open_images
from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.preprocessing import Transform
from sparse_vlm.errors import UserError


def nearest(embeddings: Tensor, count: int) -> Tensor:
    """Find each image's `count` nearest other images by cosine: float[N, D] -> int64[N, count], nearest first."""
    unit = F.normalize(embeddings.float(), dim=-1)
    similarity = (unit @ unit.T).fill_diagonal_(-torch.inf)
    return similarity.topk(count, dim=-1).indices


def overlap(first: Tensor, second: Tensor) -> float:
    """Mean per-row overlap of two int64[N, k]."""
    return (first[:, :, None] == second[:, None, :]).any(-1).float().mean().item()


def closest_tokens(tokens: Tensor) -> Tensor:
    """Compute the largest cosine between two latent tokens of an image: float[B, n, C] -> float[B]."""
    unit = F.normalize(tokens.float(), dim=-1)
    similarity = unit @ unit.transpose(1, 2)
    similarity.diagonal(dim1=1, dim2=2).fill_(-1)
    return similarity.flatten(1).amax(1)


def compare(
    teacher_spec: str,
    encoder_dir: Path,
    images: str,
    image_size: int | None = None,
    layer: int | None = None,
    batch_size: int = 64,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Compare student and teacher on unlabelled images.

    Args:
        teacher_spec: see `open_teacher`.
        encoder_dir: directory of a SparseFormer.
        images: see `open_images`.
        image_size, layer: see `open_teacher`; those of the bootstrap.
        batch_size: images computed together.
        device, dtype: device and dtype of both.

    Returns:
        "cosine": mean cosine of the representations. "centered_cosine": the same after subtracting their means.
        "cosine_of_mean": the cosine of a student that always returns the teacher's mean; a cosine near it, or a
        centered cosine near 0, means that the student has learnt nothing about images. "same_nearest": share of images
        with the same nearest neighbour. "five_nearest_shared": share of the five nearest neighbours that both have.
        "closest_tokens": mean over images of the largest cosine between two tokens; 1 means that two are equal.
        "images": number of images.
    """
    teacher = open_teacher(teacher_spec, image_size=image_size, layer=layer).to(device, dtype)
    student = SparseFormer.from_pretrained(encoder_dir).to(device, dtype)
    latent: list[Tensor] = []

    def embed(pixels: Tensor) -> Tensor:
        output = student(pixels)
        latent.append(closest_tokens(output.tokens[:, student.num_prefix_tokens :]))
        return output.pooled

    def embedded(encode: Callable[[Tensor], Tensor], transform: Transform, name: str) -> Tensor:
        source = open_images(images, transform, shuffle_buffer=0)
        return embed_images(encode, source, batch_size=batch_size, device=device, dtype=dtype, name=name)

    of_teacher = embedded(teacher, Transform(teacher.preprocessing), "teacher")
    of_student = embedded(embed, student.transform, "student")
    if len(of_teacher) < 6:
        raise UserError(f"{images} has {len(of_teacher)} images; five neighbours need at least 6.")
    near = [nearest(each, 5) for each in (of_teacher, of_student)]
    return {
        "cosine": mean_cosine(of_student, of_teacher),
        "centered_cosine": centered_cosine(of_student, of_teacher),
        "cosine_of_mean": mean_cosine(of_teacher.mean(0, keepdim=True), of_teacher),
        "same_nearest": overlap(near[0][:, :1], near[1][:, :1]),
        "five_nearest_shared": overlap(*near),
        "closest_tokens": torch.cat(latent).mean().item(),
        "images": len(of_teacher),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, evaluate, and return the exit status."""
    parser = CommandParser.of_module("eval.encoders.neighbours", __doc__)
    add_teacher(parser, "as for train.bootstrap")
    add_encoder(parser)
    parser.add_argument("--images", required=True, help="held-out images: a folder, wds:SHARDS, hf:NAME …")
    add_teacher_options(parser)
    add_arguments(parser)
    return parser.run(_run, argv)


def _run(arguments: argparse.Namespace) -> None:
    device, dtype = begin(arguments, arguments.teacher, arguments.images)
    result = compare(
        arguments.teacher,
        arguments.encoder,
        arguments.images,
        arguments.image_size,
        arguments.teacher_layer,
        arguments.batch_size,
        device=device,
        dtype=dtype,
    )
    write_result(arguments.output, result, dtype)
    for name, value in result.items():
        print(f"{name}: {value:.4g}")


if __name__ == "__main__":
    sys.exit(main())
