"""Accuracy of frozen image representations, of a teacher and a SparseFormer with any token count, and its retention.

    python -m eval.encoders.probe --encoder runs/bootstrap --train_images photos/train --test_images photos/val
    python -m eval.encoders.probe --teacher timm:vit_small_patch14_dinov2 --teacher_layer 10 --image_size 112 \\
        --encoder runs/bootstrap --tokens 4,9,25,36 --train_images wds:train-{0..5}.tar --test_images wds:val.tar \\
        --cache features --output probe.json

Two classifiers of the training images are measured on the test images. k-NN: the 20 training images with the largest
cosine vote for their classes with the weight exp(cosine / 0.07), as in DINO's evaluation. Linear probe: a logistic
regression on standardised representations, whose regularisation is chosen on a fifth of the training images.

Each has three representations. "pooled" is the pooled output (CLS or average, with the head of the weights if they have
one), "layer_-1" the mean of the tokens after the last block, "layer_-2" the mean of those that enter it, which an LLM
reads; without CLS and registers, before the final norm. Retention is a student's accuracy divided by the teacher's.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from eval.encoders.arguments import (
    add_arguments,
    add_encoder,
    add_labelled_images,
    add_teacher,
    add_teacher_options,
    add_tokens,
    begin,
    labelled_images,
    write_result,
)
from eval.encoders.pair import ImageEncoder, open_encoders
from eval.encoders.probing.classifiers import linear_probe, vote
from eval.encoders.probing.representations import REPRESENTATIONS, ImageSets, represent
from eval.intervals import ratio_interval, wilson_interval
from eval.tables import percent, rich_table
from sparse_vlm.command_line import CommandParser
from sparse_vlm.data.images.labelled_sets import LabelledSet
from sparse_vlm.dtypes import name_of
from sparse_vlm.encoder.token_counts import TokenCounts
from sparse_vlm.errors import UserError
from sparse_vlm.files import check_output
from sparse_vlm.measure.timing import require_positive

MEASURES = {"knn": "k-NN", "linear": "linear"}


def check_sets(train: LabelledSet, test: LabelledSet, neighbours: int) -> None:
    """Check that the training images are enough to vote, and have at least two classes and those of the test images."""
    if neighbours > len(train.values):
        raise UserError(
            f"{neighbours} neighbours need as many training images, but there are {len(train.values)}. Lower "
            "--neighbours or give more images."
        )
    if len(used := train.values.unique()) < 2:
        raise UserError(
            f"All {len(train.values)} training images have the class {train.classes[int(used)]!r}, but classifiers "
            "need at least two. Give more images."
        )
    known = {train.classes[index] for index in used.tolist()}
    unknown = sorted({test.classes[index] for index in test.values.tolist()} - known)
    if unknown:
        raise UserError(f"No training image has the class {unknown[0]!r} of the test images.")


def classify(of_test: Tensor, of_train: Tensor, labels: Tensor, truth: Tensor, neighbours: int) -> dict[str, Any]:
    """Classify the test images by one representation.

    Args:
        of_test, of_train: representations float32[M, D] and float32[N, D].
        labels, truth: class indices of the training and test images, int64[N] and int64[M].
        neighbours: number of training images that vote.

    Returns:
        "knn" and "linear", each with "accuracy", "confidence_95" (Wilson's) and "correct", a list of M values 0 or 1;
        "linear" also with "C".
    """
    probed = linear_probe(of_test, of_train, labels)
    guesses = {"knn": vote(of_test, of_train, labels, neighbours), "linear": probed.guesses}
    scores: dict[str, Any] = {}
    for measure, guess in guesses.items():
        correct = (guess == truth).int().tolist()
        interval = wilson_interval(sum(correct), len(correct))
        scores[measure] = {
            "accuracy": sum(correct) / len(correct),
            "confidence_95": list(interval),
            "correct": correct,
        }
    scores["linear"]["C"] = probed.strength
    return scores


def retention(student: Sequence[int], teacher: Sequence[int]) -> dict[str, Any]:
    """Compute the ratio of two accuracies on the same test images, with its paired bootstrap interval.

    Args:
        student, teacher: 1 for each test image that is classified correctly, else 0.

    Returns:
        "retention" and "retention_confidence_95"; None where the teacher's accuracy may be 0.
    """
    interval = ratio_interval(student, teacher)
    return {
        "retention": sum(student) / sum(teacher) if any(teacher) else None,
        "retention_confidence_95": None if interval is None else list(interval),
    }


def evaluate(
    encoders: dict[str, ImageEncoder],
    images: ImageSets,
    neighbours: int = 20,
    batch_size: int = 64,
    cache: Path | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Measure the representations of image encoders.

    Args:
        encoders: by name. The others are compared with "teacher", if there is one.
        images: training and test images.
        neighbours: number of training images that vote.
        batch_size: images computed together.
        cache: folder of representations that were computed before (None: compute all).
        device, dtype: device and dtype of the encoders.

    Returns:
        "encoders": name -> "tokens", "image_size" and "representations": for each of `REPRESENTATIONS` the scores of
        `classify` and the `retention`, without the lists of single images. "neighbours", "train_images",
        "test_images" and "classes".
    """
    measured: dict[str, dict[str, Any]] = {}
    for name, encoder in encoders.items():
        train, test = images.open(encoder)
        check_sets(train, test, neighbours)
        options: dict[str, Any] = {"batch_size": batch_size, "device": device, "dtype": dtype}
        of_train = represent(encoder, train, cache, name=f"{name}, training", **options)
        of_test = represent(encoder, test, cache, name=f"{name}, test", **options)
        truth = torch.tensor([train.classes.index(test.classes[index]) for index in test.values.tolist()])
        measured[name] = {
            each: classify(of_test[each], of_train[each], train.values, truth, neighbours) for each in REPRESENTATIONS
        }
    _compare(measured)
    return {
        "encoders": {
            name: {
                "tokens": encoders[name].tokens,
                "image_size": encoders[name].preprocessing.crop,
                "representations": scores,
            }
            for name, scores in measured.items()
        },
        "neighbours": neighbours,
        "train_images": len(train.values),
        "test_images": len(test.values),
        "classes": len(train.classes),
    }


def _compare(measured: dict[str, dict[str, Any]]) -> None:
    """Replace the lists of correct images by the retention of the students."""
    correct = {
        (name, each, measure): measured[name][each][measure].pop("correct")
        for name in measured
        for each in REPRESENTATIONS
        for measure in MEASURES
    }
    for (name, each, measure), student in correct.items():
        if name != "teacher" and "teacher" in measured:
            measured[name][each][measure] |= retention(student, correct["teacher", each, measure])


def table_rows(result: dict[str, Any]) -> list[list[str]]:
    """Return the result of `evaluate` as rows of text, the heading first."""
    rows = [["encoder (tokens)", "classified by", "accuracy %", "retention %"]]
    for name, encoder in result["encoders"].items():
        kind = name.partition("_")[0]  # the number of tokens is added for all
        for measure, title in MEASURES.items():
            for each, scores in encoder["representations"].items():
                score = scores[measure]
                accuracy = percent(score["accuracy"], score["confidence_95"])
                kept = percent(score.get("retention"), score.get("retention_confidence_95"))
                rows.append([f"{kind} ({encoder['tokens']})", f"{title}, {each}", accuracy, kept])
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, evaluate, and return the exit status."""
    parser = CommandParser.of_module("eval.encoders.probe", __doc__)
    add_teacher(parser, "as for train.bootstrap", required=False)
    add_teacher_options(parser)
    add_encoder(parser, required=False)
    add_tokens(parser)
    add_labelled_images(parser)
    parser.add_argument("--neighbours", type=int, default=20, help="training images that vote (default: 20)")
    parser.add_argument("--cache", type=Path, help="folder of representations, to compute each encoder's once")
    add_arguments(parser)
    return parser.run(_run, argv)


def _run(arguments: argparse.Namespace) -> None:
    device, dtype = begin(arguments, arguments.teacher, arguments.train_images, arguments.test_images)
    require_positive(neighbours=arguments.neighbours)
    images = labelled_images(arguments)
    if arguments.cache is not None:
        check_output(arguments.cache)
    counts = TokenCounts.of_option(arguments.tokens)
    encoders = open_encoders(
        arguments.teacher, arguments.encoder, arguments.image_size, arguments.teacher_layer, counts, device, dtype
    )
    result = evaluate(
        encoders, images, arguments.neighbours, arguments.batch_size, arguments.cache, device=device, dtype=dtype
    )
    write_result(arguments.output, result, dtype)
    title = f"{result['neighbours']} nearest neighbours and linear probe, {name_of(dtype)}"
    caption = f"{result['test_images']} test images, {result['train_images']} training images; 95% intervals"
    Console().print(rich_table(table_rows(result), title, caption))


if __name__ == "__main__":
    sys.exit(main())
