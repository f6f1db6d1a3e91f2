"""k-nearest-neighbour accuracy of frozen image representations, of a teacher and a SparseFormer with any token count.

    python -m eval.encoders.knn --encoder runs/bootstrap --train_images photos/train --test_images photos/val
    python -m eval.encoders.knn --teacher timm:vit_small_patch14_dinov2 --image_size 112 --encoder runs/bootstrap \\
        --tokens 4,9,25,36 --train_images wds:train-{00..05}.tar --test_images wds:val-00.tar --output knn.json

The 20 training images with the largest cosine vote for their classes with the weight exp(cosine / 0.07), as in DINO's
evaluation. Representations are pooled outputs (CLS or average, with the head of the weights if they have one).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from eval.encoders.arguments import add_arguments, add_encoder, add_teacher, add_tokens, begin
from eval.encoders.embeddings import embed_images
from eval.encoders.pair import ImageEncoder, student_encoders, teacher_encoder
from eval.intervals import wilson_interval
from eval.tables import rich_table
from sparse_vlm.bootstrap import open_teacher
from sparse_vlm.command_line import CommandParser
from sparse_vlm.data.images.labelled_sets import LabelledSet, open_labelled_set
from sparse_vlm.encoder.preprocessing import Transform
from sparse_vlm.encoder.token_counts import TokenCounts
from sparse_vlm.errors import UserError
from sparse_vlm.files import write_json
from sparse_vlm.measure.timing import require_positive

TEMPERATURE = 0.07


def vote(test: Tensor, train: Tensor, labels: Tensor, neighbours: int = 20, temperature: float = TEMPERATURE) -> Tensor:
    """Classify images by a weighted vote of their nearest training images.

    Args:
        test: representations float[M, D] of any length.
        train: representations float[N, D].
        labels: class indices of the training images, int64[N].
        neighbours: training images that vote, at most N.
        temperature: a training image votes with the weight exp(cosine / temperature).

    Returns:
        int64[M] class indices.
    """
    train, classes = F.normalize(train.float(), dim=-1), int(labels.max()) + 1
    voted = []
    for part in F.normalize(test.float(), dim=-1).split(1024):
        cosine, nearest = (part @ train.T).topk(neighbours, dim=-1)
        votes = torch.zeros(len(part), classes).scatter_add_(1, labels[nearest], (cosine / temperature).exp())
        voted.append(votes.argmax(dim=-1))
    return torch.cat(voted)


def open_encoders(
    teacher_spec: str | None,
    encoder_dir: Path | None,
    image_size: int | None,
    counts: Sequence[int],
    device: torch.device | str,
    dtype: torch.dtype,
) -> dict[str, ImageEncoder]:
    """Open a teacher, a SparseFormer or both; see `teacher_encoder` and `student_encoders` for the names.

    Args:
        teacher_spec: see `open_teacher`.
        encoder_dir: directory of a SparseFormer.
        image_size: input size of the teacher in pixels (None: its own).
        counts: numbers of latent tokens to use the SparseFormer with, besides its own.
        device, dtype: device and dtype of both.
    """
    if teacher_spec is None and encoder_dir is None:
        raise UserError("Nothing to evaluate: give --teacher, --encoder or both.")
    if teacher_spec is None and image_size is not None:
        raise UserError(f"--image_size {image_size} is for the teacher: give --teacher, or leave it out.")
    if encoder_dir is None and counts:
        raise UserError("--tokens is for a SparseFormer: give --encoder, or leave it out.")
    encoders = {}
    if teacher_spec is not None:
        teacher = open_teacher(teacher_spec, image_size=image_size).to(device)
        encoders["teacher"] = teacher_encoder(teacher, dtype)
    if encoder_dir is not None:
        encoders |= student_encoders(encoder_dir, device, dtype, counts)
    return encoders


def open_set(spec: str, encoder: ImageEncoder, samples: int | None, kind: str) -> LabelledSet:
    """Open labelled images, preprocessed for an encoder.

    Args:
        spec: see `open_labelled_set`.
        encoder: provides the preprocessing.
        samples: number of images to use, evenly spaced (None: all).
        kind: "train" or "test", which names the options in errors.
    """
    found = open_labelled_set(spec, Transform(encoder.preprocessing), f"--{kind}_images")
    if samples is None:
        return found
    if samples > len(found.values):
        raise UserError(
            f"--{kind}_samples asks for {samples} images, but {spec} has {len(found.values)}. Leave it out to use all."
        )
    return found.spread(samples)


def check_sets(train: LabelledSet, test: LabelledSet, neighbours: int) -> None:
    """Check that the training images are enough to vote, and that the test images have only classes of theirs."""
    if neighbours > len(train.values):
        raise UserError(
            f"{neighbours} neighbours need as many training images, but there are {len(train.values)}. Lower "
            "--neighbours or give more images."
        )
    known = {train.classes[index] for index in train.values.tolist()}
    unknown = sorted({test.classes[index] for index in test.values.tolist()} - known)
    if unknown:
        raise UserError(f"No training image has the class {unknown[0]!r} of the test images.")


def evaluate(
    encoders: dict[str, ImageEncoder],
    train_images: str,
    test_images: str,
    samples: tuple[int | None, int | None] = (None, None),
    neighbours: int = 20,
    batch_size: int = 64,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Compute the k-nearest-neighbour accuracy of image encoders.

    Args:
        encoders: by name.
        train_images, test_images: see `open_labelled_set`.
        samples: numbers of training and test images to use, evenly spaced (None: all).
        neighbours: number of training images that vote.
        batch_size: images computed together.
        device, dtype: device and dtype of the encoders.

    Returns:
        An accuracy in [0, 1] for each name; "confidence_95" with Wilson's [low, high] of each; "neighbours",
        "train_images", "test_images", "classes".
    """
    correct: dict[str, int] = {}
    for name, encoder in encoders.items():
        train = open_set(train_images, encoder, samples[0], "train")
        test = open_set(test_images, encoder, samples[1], "test")
        check_sets(train, test, neighbours)

        def embed(labelled: LabelledSet, title: str, encoder: ImageEncoder = encoder) -> Tensor:
            return embed_images(
                encoder.encode, labelled.images, batch_size=batch_size, device=device, dtype=dtype, name=title
            )

        of_train, of_test = embed(train, f"{name}, training"), embed(test, f"{name}, test")
        voted = vote(of_test, of_train, train.values, neighbours)
        correct[name] = sum(
            train.classes[guess] == test.classes[truth]
            for guess, truth in zip(voted.tolist(), test.values.tolist(), strict=True)
        )
    count = len(test.values)
    return {
        **{name: right / count for name, right in correct.items()},
        "confidence_95": {name: list(wilson_interval(right, count)) for name, right in correct.items()},
        "neighbours": neighbours,
        "train_images": len(train.values),
        "test_images": count,
        "classes": len(train.classes),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, evaluate, and return the exit status."""
    parser = CommandParser.of_module("eval.encoders.knn", __doc__)
    add_teacher(parser, "as for train.bootstrap", required=False)
    add_encoder(parser, required=False)
    images = "labelled images: a folder per class, or wds:SHARDS with CLASS/NAME.jpg"
    parser.add_argument("--train_images", required=True, help=images)
    parser.add_argument("--test_images", required=True, help="held-out images, as --train_images")
    parser.add_argument("--train_samples", type=int, help="training images to use, evenly spaced (default: all)")
    parser.add_argument("--test_samples", type=int, help="test images to use, evenly spaced (default: all)")
    parser.add_argument("--neighbours", type=int, default=20, help="training images that vote (default: 20)")
    add_tokens(parser)
    parser.add_argument("--image_size", type=int, help="input size of the teacher in pixels (default: its own)")
    add_arguments(parser)
    return parser.run(_run, argv)


def _run(arguments: argparse.Namespace) -> None:
    device, dtype = begin(arguments, arguments.teacher, arguments.train_images, arguments.test_images)
    numbers = {name: getattr(arguments, name) for name in ("train_samples", "test_samples", "neighbours")}
    require_positive(**{name: number for name, number in numbers.items() if number is not None})
    counts = TokenCounts.of_option(arguments.tokens)
    sources = arguments.teacher, arguments.encoder, arguments.image_size
    encoders = open_encoders(*sources, counts, device, dtype)
    result = evaluate(
        encoders,
        arguments.train_images,
        arguments.test_images,
        (arguments.train_samples, arguments.test_samples),
        arguments.neighbours,
        arguments.batch_size,
        device=device,
        dtype=dtype,
    )
    if arguments.output is not None:
        write_json(arguments.output, result)
    rows = [["representation", "accuracy", "95% interval"]]
    for name, (low, high) in result["confidence_95"].items():
        rows.append([name, f"{result[name]:.2%}", f"{low:.2%} – {high:.2%}"])
    caption = f"{result['test_images']} test images, {result['train_images']} training images"
    Console().print(rich_table(rows, f"{result['neighbours']} nearest neighbours", caption))


if __name__ == "__main__":
    sys.exit(main())
