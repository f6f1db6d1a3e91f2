"""Does a student see images as its teacher does? Cosine, nearest neighbours, and whether its tokens differ.

    python -m eval.encoders.neighbours --teacher TEACHER --encoder ENCODER_DIR --images FOLDER --output neighbours.json

Needs no labels. The nearest neighbour of an image among the others, by the cosine of the final representations, is
found with the teacher and with the student; they agree when it is the same image.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from eval.encoders.embeddings import embed_images
from sparse_vlm.bootstrap import open_teacher
from sparse_vlm.bootstrap.similarity import centered_cosine, mean_cosine
from sparse_vlm.data.images.sources import open_images
from sparse_vlm.device_arguments import add_device_arguments
from sparse_vlm.devices import choose_device, choose_dtype
from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.preprocessing import Transform
from sparse_vlm.errors import UserError, exit_with_sentence
from sparse_vlm.files import check_output_files, write_json


def nearest(embeddings: Tensor, count: int) -> Tensor:
    """The `count` nearest other images of each image by cosine: float[N, D] -> int64[N, count], nearest first."""
    unit = F.normalize(embeddings.float(), dim=-1)
    similarity = (unit @ unit.T).fill_diagonal_(-torch.inf)
    return similarity.topk(count, dim=-1).indices


def overlap(first: Tensor, second: Tensor) -> float:
    """Share of each row's entries that the other's row has too, meaned over rows: int64[N, k] twice."""
    return (first[:, :, None] == second[:, None, :]).any(-1).float().mean().item()


def closest_tokens(tokens: Tensor) -> Tensor:
    """Largest cosine between two different latent tokens of an image: float[B, n, C] -> float[B]."""
    unit = F.normalize(tokens.float(), dim=-1)
    similarity = unit @ unit.transpose(1, 2)
    similarity.diagonal(dim1=1, dim2=2).fill_(-1)
    return similarity.flatten(1).amax(1)


def compare(
    teacher_spec: str,
    encoder_dir: Path,
    images: str,
    image_size: int | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Student against teacher on unlabelled images.

    Args:
        teacher_spec: see `open_teacher`.
        encoder_dir: of `SparseFormer.save_pretrained`.
        images: see `open_images`.
        image_size: input side of the teacher in pixels, as it was bootstrapped with.
        device, dtype: where both compute, and in which type.

    Returns:
        "cosine" of the representations; "centered_cosine", of their deviations from their means; "cosine_of_mean", what
        a student that always gives the teacher's mean would reach (a cosine near it, or a centered one near 0, means
        that nothing about images was learnt); "same_nearest" and "five_nearest_shared" (shares of images, of
        neighbours); "closest_tokens" (mean over images of the largest cosine between two tokens; 1: two coincide);
        "images".

    Raises:
        UserError: something cannot be opened, or there are fewer than 6 images.
    """
    teacher = open_teacher(teacher_spec, image_size=image_size).to(device, dtype)
    student = SparseFormer.from_pretrained(encoder_dir).to(device, dtype)
    latent: list[Tensor] = []

    def embed(pixels: Tensor) -> Tensor:
        output = student(pixels)
        latent.append(closest_tokens(output.tokens[:, student.num_prefix_tokens :]))
        return output.pooled

    def seen_by(encode: Callable[[Tensor], Tensor], transform: Transform, name: str) -> Tensor:
        source = open_images(images, transform, shuffle_buffer=0)
        return embed_images(encode, source, device=device, dtype=dtype, name=name)

    seen_by_teacher = seen_by(teacher, Transform(teacher.preprocessing), "teacher")
    seen_by_student = seen_by(embed, student.transform, "student")
    if len(seen_by_teacher) < 6:
        raise UserError(f"{images} holds {len(seen_by_teacher)} images; five neighbours need at least 6.")
    near = [nearest(seen, 5) for seen in (seen_by_teacher, seen_by_student)]
    return {
        "cosine": mean_cosine(seen_by_student, seen_by_teacher),
        "centered_cosine": centered_cosine(seen_by_student, seen_by_teacher),
        "cosine_of_mean": mean_cosine(seen_by_teacher.mean(0, keepdim=True), seen_by_teacher),
        "same_nearest": overlap(near[0][:, :1], near[1][:, :1]),
        "five_nearest_shared": overlap(*near),
        "closest_tokens": torch.cat(latent).mean().item(),
        "images": len(seen_by_teacher),
    }


def _run(arguments: argparse.Namespace) -> None:
    check_output_files({"--output": arguments.output}, [arguments.teacher, arguments.encoder, arguments.images])
    device = choose_device(arguments.device)
    result = compare(
        arguments.teacher,
        arguments.encoder,
        arguments.images,
        arguments.image_size,
        device=device,
        dtype=choose_dtype(arguments.dtype, device),
    )
    if arguments.output is not None:
        write_json(arguments.output, result)
    for name, value in result.items():
        print(f"{name}: {value:.4g}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="as for train.bootstrap")
    parser.add_argument("--encoder", type=Path, required=True, help="SparseFormer directory")
    parser.add_argument("--images", required=True, help="unlabelled held-out images: a folder, wds:SHARDS, …")
    parser.add_argument("--image_size", type=int, help="input side of the teacher in pixels, if not its own")
    add_device_arguments(parser)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args(argv)
    return exit_with_sentence(lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main())
