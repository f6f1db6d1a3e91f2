"""Zero-shot accuracy of a CLIP-like teacher and of the SparseFormer bootstrapped from it, on easy-VQA.

    python -m eval.encoders.zero_shot --teacher open_clip:ViT-L-14-quickgelu/openai --encoder runs/bootstrap
    python -m eval.encoders.zero_shot --teacher runs/quickstart/teacher --encoder runs/quickstart/encoder \\
        --tokens 4,9,16

An image counts as correct if the caption of its class has the nearest embedding. The classes are the 24 combinations of
colour and shape in easy-VQA; both encoders use the teacher's text encoder.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from eval.encoders.arguments import add_arguments, add_encoder, add_teacher, add_tokens, begin, write_result
from eval.encoders.embeddings import embed_images
from eval.encoders.pair import ImageEncoder, open_pair
from eval.intervals import wilson_interval
from eval.scoring.protocol import Score
from sparse_vlm.bootstrap.zero_shot import class_embeddings, hits
from sparse_vlm.command_line import CommandParser
from sparse_vlm.data import easy_vqa
from sparse_vlm.data.images.labels import LabelledImages, Labels
from sparse_vlm.encoder.preprocessing import Transform
from sparse_vlm.encoder.token_counts import TokenCounts


def accuracy(images: Tensor, classes: Tensor, labels: Tensor) -> Score:
    """Compute the share of images whose nearest class embedding is their label's, with Wilson's 95% interval.

    Args:
        images: embeddings float[N, D] of any length.
        classes: unit embeddings float[K, D], one for each class.
        labels: class indices int64[N].
    """
    correct = int(hits(images, classes, labels).sum())
    return Score(correct / len(labels), len(labels), wilson_interval(correct, len(labels)))


def easy_vqa_images(split: Literal["train", "test"]) -> Labels:
    """Label easy-VQA's images with 24 classes (colour × shape), named by captions such as "a red circle".

    Images whose class does not follow from their questions are left out.
    """
    attributes = easy_vqa.attributes_from_questions(easy_vqa.load_questions(split))
    folder = easy_vqa.split_folder(split) / "images"
    paths = tuple(easy_vqa.image_path(folder, image_id) for image_id in attributes)
    indices = torch.tensor([easy_vqa.CLASSES.index(shown) for shown in attributes.values()])
    return Labels(paths, indices, tuple(shown.caption for shown in easy_vqa.CLASSES))


def embed_labelled(
    encoders: Mapping[str, ImageEncoder],
    labels: Labels,
    batch_size: int,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Embed labelled images with each encoder, see `embed_images`: name -> float32[N, D] on the CPU."""
    return {
        name: embed_images(
            encoder.embed,
            LabelledImages(labels, Transform(encoder.preprocessing)),
            batch_size=batch_size,
            device=device,
            dtype=dtype,
            name=name,
        )
        for name, encoder in encoders.items()
    }


def compare(
    teacher_spec: str,
    encoder_dir: Path,
    split: Literal["train", "test"] = "test",
    batch_size: int = 64,
    counts: Sequence[int] = (),
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Compute the zero-shot accuracy of a teacher and its student on easy-VQA.

    Args:
        teacher_spec, encoder_dir, counts, device, dtype: see `open_pair`.
        split: split of easy-VQA.
        batch_size: images computed together.

    Returns:
        "teacher", "student" and "student_N_tokens" (accuracies in [0, 1]), "confidence_95" with [low, high] of each,
        "images", "classes".
    """
    text, encoders = open_pair(teacher_spec, encoder_dir, device, dtype, counts)
    labels = easy_vqa_images(split)
    classes = class_embeddings(text, labels.classes).cpu()
    embeddings = embed_labelled(encoders, labels, batch_size, device=device, dtype=dtype)
    scores = {name: accuracy(each, classes, labels.values) for name, each in embeddings.items()}
    return {
        **{name: score.value for name, score in scores.items()},
        "confidence_95": {name: list(score.interval) for name, score in scores.items()},
        "images": len(labels.paths),
        "classes": len(labels.classes),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, evaluate, and return the exit status."""
    parser = CommandParser.of_module("eval.encoders.zero_shot", __doc__)
    add_teacher(parser, "open_clip:NAME/TAG or a directory of open_clip")
    add_encoder(parser)
    parser.add_argument("--split", choices=["train", "test"], default="test", help="split of easy-VQA (default: test)")
    add_tokens(parser)
    add_arguments(parser)
    return parser.run(_run, argv)


def _run(arguments: argparse.Namespace) -> None:
    device, dtype = begin(arguments, arguments.teacher)
    counts = TokenCounts.of_option(arguments.tokens)
    inputs = arguments.teacher, arguments.encoder, arguments.split
    result = compare(*inputs, arguments.batch_size, counts, device=device, dtype=dtype)
    write_result(arguments.output, result, dtype)
    for name, (low, high) in result["confidence_95"].items():
        print(f"{name}: {result[name]:.2%} of {result['images']} images (95%: {low:.2%} – {high:.2%})")


if __name__ == "__main__":
    sys.exit(main())
