"""Zero-shot accuracy: which caption's embedding is nearest to the image's.

    python -m eval.encoders.zero_shot --teacher SPEC --encoder DIR

For CLIP-like teachers (open_clip) and for SparseFormers bootstrapped from them, which share the teacher's text side.
The pictures are easy-VQA's, the classes its 24 combinations of colour and shape.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from eval.encoders.embeddings import embed_images
from eval.intervals import wilson_interval
from eval.scoring.protocol import Score
from sparse_vlm.bootstrap.teachers import open_teacher
from sparse_vlm.bootstrap.zero_shot import class_embeddings, hits
from sparse_vlm.data import easy_vqa
from sparse_vlm.data.images.labels import LabelledImages, Labels
from sparse_vlm.device_arguments import add_device_arguments
from sparse_vlm.devices import choose_device, choose_dtype
from sparse_vlm.encoder import Preprocessing, SparseFormer
from sparse_vlm.encoder.preprocessing import Transform
from sparse_vlm.errors import UserError, exit_with_sentence
from sparse_vlm.files import check_output_files, write_json


def accuracy(images: Tensor, classes: Tensor, labels: Tensor) -> Score:
    """Share of images whose nearest class embedding is their label's, with Wilson's 95% interval.

    Args:
        images: embeddings float[N, D] of any length.
        classes: unit embeddings of one caption per class, float[K, D].
        labels: class indices int64[N].

    Raises:
        UserError: image and text embeddings have different widths.
    """
    right = int(hits(images, classes, labels).sum())
    return Score(right / len(labels), len(labels), wilson_interval(right, len(labels)))


def easy_vqa_images(split: Literal["train", "test"]) -> Labels:
    """easy-VQA as 24 classes (colour × shape), named by captions ("a red circle"): the pictures whose class follows
    from their questions."""
    attributes = easy_vqa.attributes_from_questions(easy_vqa.load_questions(split))
    folder = easy_vqa.split_folder(split) / "images"
    paths = tuple(easy_vqa.image_path(folder, image_id) for image_id in attributes)
    indices = torch.tensor([easy_vqa.CLASSES.index(shown) for shown in attributes.values()])
    return Labels(paths, indices, tuple(shown.caption for shown in easy_vqa.CLASSES))


def compare(
    teacher_spec: str,
    encoder_dir: Path,
    split: Literal["train", "test"] = "test",
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Zero-shot accuracy of a teacher and of the SparseFormer made from it, on easy-VQA, with the teacher's text side.

    Args:
        teacher_spec: see `open_teacher`; of a model with a text side.
        encoder_dir: of `SparseFormer.save_pretrained`.
        split: of easy-VQA.
        device: where both compute.
        dtype: of both image sides; the text side keeps its own.

    Returns:
        "teacher" and "student" (accuracies in [0, 1]), "confidence_95" with [low, high] of both, "images", "classes".

    Raises:
        UserError: the teacher has no text side, or something cannot be opened.
    """
    teacher = open_teacher(teacher_spec).to(device)
    if teacher.text is None:
        raise UserError(
            f"The teacher {teacher_spec!r} has no text side; zero-shot classification needs an open_clip one."
        )
    teacher.trunk.to(dtype)
    student = SparseFormer.from_pretrained(encoder_dir).to(device, dtype)
    labels = easy_vqa_images(split)
    classes = class_embeddings(teacher.text, labels.classes).cpu()
    encoders: dict[str, tuple[Callable[[Tensor], Tensor], Preprocessing]] = {
        "teacher": (teacher, teacher.preprocessing),
        "student": (lambda images: student(images).pooled, student.config.preprocessing),
    }
    scores = {}
    for name, (encode, preprocessing) in encoders.items():
        images = LabelledImages(labels, Transform(preprocessing))
        embeddings = embed_images(encode, images, device=device, dtype=dtype, name=name)
        scores[name] = accuracy(embeddings, classes, labels.values)
    return {
        **{name: score.value for name, score in scores.items()},
        "confidence_95": {name: list(score.interval) for name, score in scores.items()},
        "images": len(labels.paths),
        "classes": len(labels.classes),
    }


def build_parser() -> argparse.ArgumentParser:
    """The arguments of `python -m eval.encoders.zero_shot`."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.encoders.zero_shot", description="Zero-shot accuracy on easy-VQA."
    )
    parser.add_argument("--teacher", required=True, help="open_clip:NAME/TAG or an open_clip directory")
    parser.add_argument("--encoder", type=Path, required=True, help="SparseFormer directory")
    parser.add_argument("--split", choices=["train", "test"], default="test")
    add_device_arguments(parser)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    check_output_files({"--output": arguments.output}, [arguments.teacher, arguments.encoder])
    device = choose_device(arguments.device)
    dtype = choose_dtype(arguments.dtype, device)
    result = compare(arguments.teacher, arguments.encoder, arguments.split, device=device, dtype=dtype)
    if arguments.output is not None:
        write_json(arguments.output, result)
    for name in ("teacher", "student"):
        low, high = result["confidence_95"][name]
        print(f"{name}: {result[name]:.2%} of {result['images']} images (95%: {low:.2%} – {high:.2%})")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    return exit_with_sentence(lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main())
