"""`python -m eval.zero_shot --teacher SPEC --encoder DIR`: which caption's embedding is nearest to the picture's.

For CLIP-like teachers (open_clip) and for SparseFormers bootstrapped from them, which share the teacher's text side.
The pictures are easy-VQA's, the classes its 24 combinations of colour and shape.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from eval.metrics import wilson_interval
from eval.protocol import Score
from sparse_vlm.bootstrap.teachers import open_teacher
from sparse_vlm.bootstrap.zero_shot import class_embeddings, hits
from sparse_vlm.data import easy_vqa
from sparse_vlm.data.images import open_image
from sparse_vlm.encoder import Preprocessing, SparseFormer
from sparse_vlm.encoder.preprocessing import Transform
from sparse_vlm.errors import UserError, exit_with_sentence
from sparse_vlm.files import write_json


def embed_images(
    encode: Callable[[Tensor], Tensor],
    paths: Sequence[Path],
    preprocessing: Preprocessing,
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Unit embeddings of image files.

    Args:
        encode: float[B, 3, H, W] -> float[B, D]; e.g. an open teacher, or `lambda x: encoder(x).pooled`.
        paths: image files.
        preprocessing: what belongs to the weights.
        batch_size: images at a time.
        device: of the weights.

    Returns:
        float32[len(paths), D] on the CPU.

    Raises:
        UserError: an image is missing or damaged.
    """
    transform = Transform(preprocessing)
    embeddings = []
    with torch.inference_mode():
        for start in tqdm(range(0, len(paths), batch_size), desc="embed images", unit="batch"):
            images = torch.stack([transform(open_image(path)) for path in paths[start : start + batch_size]])
            embeddings.append(F.normalize(encode(images.to(device)).float(), dim=-1).cpu())
    return torch.cat(embeddings)


def accuracy(images: Tensor, classes: Tensor, labels: Sequence[int]) -> Score:
    """Share of images whose nearest class embedding is their label's, with Wilson's 95% interval.

    Args:
        images: unit embeddings float[N, D].
        classes: unit embeddings of one caption per class, float[K, D].
        labels: N class indices.

    Raises:
        UserError: image and text embeddings have different widths.
    """
    right = int(hits(images, classes, torch.as_tensor(labels)).sum())
    return Score(right / len(labels), len(labels), wilson_interval(right, len(labels)))


def easy_vqa_images(split: Literal["train", "test"]) -> tuple[list[Path], list[int], list[str]]:
    """easy-VQA as 24 classes (colour × shape): the pictures whose class follows from their questions.

    Returns:
        image files, their class indices, and one caption per class ("a red circle").
    """
    attributes = easy_vqa.attributes_from_questions(easy_vqa.load_questions(split))
    folder = easy_vqa.split_folder(split) / "images"
    paths = [easy_vqa.image_path(folder, image_id) for image_id in attributes]
    labels = [easy_vqa.CLASSES.index(shown) for shown in attributes.values()]
    return paths, labels, [shown.caption for shown in easy_vqa.CLASSES]


def compare(teacher_spec: str, encoder_dir: Path, split: Literal["train", "test"] = "test") -> dict[str, Any]:
    """Zero-shot accuracy of a teacher and of the SparseFormer made from it, on easy-VQA, with the teacher's text side.

    Args:
        teacher_spec: see `open_teacher`; of a model with a text side.
        encoder_dir: of `SparseFormer.save_pretrained`.
        split: of easy-VQA.

    Returns:
        "teacher" and "student" (accuracies in [0, 1]), "confidence_95" with [low, high] of both, "images", "classes".

    Raises:
        UserError: the teacher has no text side, or something cannot be opened.
    """
    teacher = open_teacher(teacher_spec)
    if teacher.text is None:
        raise UserError(
            f"The teacher {teacher_spec!r} has no text side; zero-shot classification needs an open_clip one."
        )
    student = SparseFormer.from_pretrained(encoder_dir)
    paths, labels, captions = easy_vqa_images(split)
    classes = class_embeddings(teacher.text, captions)
    scores = {
        "teacher": accuracy(embed_images(teacher, paths, teacher.preprocessing), classes, labels),
        "student": accuracy(
            embed_images(lambda images: student(images).pooled, paths, student.config.preprocessing), classes, labels
        ),
    }
    return {
        **{name: score.value for name, score in scores.items()},
        "confidence_95": {name: list(score.interval) for name, score in scores.items()},
        "images": len(paths),
        "classes": len(captions),
    }


def build_parser() -> argparse.ArgumentParser:
    """The arguments of `python -m eval.zero_shot`."""
    parser = argparse.ArgumentParser(prog="python -m eval.zero_shot", description="Zero-shot accuracy on easy-VQA.")
    parser.add_argument("--teacher", required=True, help="open_clip:NAME/TAG or an open_clip directory")
    parser.add_argument("--encoder", type=Path, required=True, help="SparseFormer directory")
    parser.add_argument("--split", choices=["train", "test"], default="test")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    result = compare(arguments.teacher, arguments.encoder, arguments.split)
    for name in ("teacher", "student"):
        low, high = result["confidence_95"][name]
        print(f"{name}: {result[name]:.2%} of {result['images']} images (95%: {low:.2%} – {high:.2%})")
    if arguments.output is not None:
        write_json(arguments.output, result)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    return exit_with_sentence(lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main())
