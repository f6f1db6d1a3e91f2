"""How well a linear map rebuilds a teacher's patch tokens from a SparseFormer's latent tokens and their RoIs.

    python -m eval.encoders.dense --teacher timm:vit_small_patch14_dinov2 --image_size 112 --encoder runs/bootstrap \\
        --train_images photos/train --test_images photos/val --train_samples 1000 --test_samples 500 --output dense.json

Each patch position reads the latent tokens by a fixed interpolation, a mean with the weights of normal distributions
around their RoIs. A ridge regression maps what is read to the teacher's patch token there, after the last block. It
has one matrix for all positions and a mean for each. Its strength is chosen on a fifth of the training images.

The values compare it with two others on the test images: "position_mean", the mean of each position over the training
images, and "pooled_teacher", the same regression from the teacher's own tokens, averaged over as many cells as the
SparseFormer has tokens. R² and cosine are those of tokens standardised per channel by the training images.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

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
from eval.encoders.probing.classifiers import hold_out
from eval.encoders.probing.grids import (
    LinearMap,
    Moments,
    choose_strength,
    fit,
    pool_to_cells,
    read_at_patches,
)
from eval.encoders.probing.representations import ImageSets
from eval.intervals import ratio_interval
from eval.tables import percent, rich_table
from sparse_vlm.command_line import CommandParser
from sparse_vlm.dtypes import name_of
from sparse_vlm.encoder.token_counts import TokenCounts
from sparse_vlm.errors import UserError

SOURCES = ("layer_-2", "layer_-1", "pooled_teacher")  # what the patches are rebuilt from
Key = tuple[str, str]  # name of the encoder, and one of SOURCES


class Batch(NamedTuple):
    """What the encoders compute of B images.

    Attributes:
        patches: the teacher's patch tokens float[B, P, C] after the last block.
        read: what each patch position reads, float[B, P, C].
    """

    patches: Tensor
    read: dict[Key, Tensor]


def batches(
    teacher: ImageEncoder,
    students: Mapping[str, ImageEncoder],
    open_images: Callable[[ImageEncoder], Any],
    batch_size: int,
    device: torch.device | str,
    name: str,
) -> Iterator[Batch]:
    """Encode the same images with the teacher and all students, which share a preprocessing.

    Args:
        teacher, students: on `device`.
        open_images: encoder -> its preprocessed images.
        batch_size: images computed together.
        device: where to compute.
        name: title of the progress bar.
    """
    student = next(iter(students.values()))
    loaders = [DataLoader(open_images(each), batch_size=batch_size) for each in (teacher, student)]
    for for_teacher, for_students in tqdm(zip(*loaders, strict=True), desc=name, unit="batch", total=len(loaders[0])):
        with torch.inference_mode():
            encoded = teacher.encode(for_teacher["pixel_values"].to(device))
            patches, places = encoded.last.float(), encoded.rois[0]
            pixels = for_students["pixel_values"].to(device)
            read: dict[Key, Tensor] = {}
            for student_name, encoder in students.items():
                output = encoder.encode(pixels)
                sources = (
                    (output.penultimate.float(), output.rois),
                    (output.last.float(), output.rois),
                    pool_to_cells(patches, places, encoder.tokens),
                )
                for source, (tokens, rois) in zip(SOURCES, sources, strict=True):
                    read[student_name, source] = read_at_patches(tokens, rois, places)
        for key, values in {("teacher", "patches"): patches, **read}.items():
            if not values.isfinite().all():
                raise UserError(
                    f"The tokens of {key[0]} are NaN or infinite for some image. The weights have diverged, or need "
                    "--dtype float32."
                )
        yield Batch(patches, read)


def fit_maps(found: Iterator[Batch], held_out: Tensor) -> tuple[dict[Key, LinearMap], dict[Key, float], Moments]:
    """Fit a linear map for each key to all training images, with the strength that is best on a part of them.

    Args:
        found: all training images.
        held_out: bool[N], the images on which the strength is chosen.

    Returns:
        The maps, their strengths, and moments of the training images, for the means of their patches.
    """
    sums: dict[tuple[Key, bool], Moments] = {}
    start = 0
    for batch in found:
        chosen = held_out[start : start + len(batch.patches)].to(batch.patches.device)
        start += len(chosen)
        for part in (False, True):
            rows = chosen == part
            for key, read in batch.read.items():
                new = Moments.of(read[rows], batch.patches[rows])
                sums[key, part] = sums[key, part] + new if (key, part) in sums else new
    keys = [key for key, part in sums if part]
    strengths = {key: choose_strength(sums[key, False], sums[key, True]) for key in keys}
    totals = {key: sums[key, False] + sums[key, True] for key in keys}
    return {key: fit(totals[key], strengths[key]) for key in keys}, strengths, totals[keys[0]]


class Rebuilt:
    """Errors of rebuilt patches over the test images.

    Args:
        mean, deviation: of each channel, [C], by which patches are standardised.
    """

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        self.mean, self.deviation = mean, deviation
        self.errors: list[float] = []  # sum of squares of each image
        self.squares: list[float] = []
        self.cosines: list[float] = []

    def add(self, rebuilt: Tensor, patches: Tensor) -> None:
        """Add a batch, float[B, P, C] each."""
        guess, truth = ((each.double() - self.mean) / self.deviation for each in (rebuilt, patches))
        self.errors += (guess - truth).square().sum((1, 2)).tolist()
        self.squares += truth.square().sum((1, 2)).tolist()
        self.cosines += F.cosine_similarity(guess, truth, dim=-1).mean(1).tolist()

    def scores(self) -> dict[str, Any]:
        """Return "r2" with "confidence_95" (bootstrap over images), and "cosine", the mean over images and patches."""
        interval = ratio_interval(self.errors, self.squares)
        return {
            "r2": 1 - sum(self.errors) / sum(self.squares),
            "confidence_95": None if interval is None else [1 - interval[1], 1 - interval[0]],
            "cosine": sum(self.cosines) / len(self.cosines),
        }


def evaluate(
    encoders: Mapping[str, ImageEncoder],
    images: ImageSets,
    batch_size: int = 64,
    *,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Rebuild the teacher's patches from each student's latent tokens.

    Args:
        encoders: "teacher" and at least one student, on `device`.
        images: training and test images; their classes are ignored.
        batch_size: images computed together.
        device: where the encoders are.

    Returns:
        "position_mean": scores, see `Rebuilt.scores`. "encoders": name -> "tokens", and scores and "ridge" of
        "layer_-2", "layer_-1" and "pooled_teacher". "patches" per image, "train_images" and "test_images".
    """
    teacher = encoders["teacher"]
    students = {name: encoder for name, encoder in encoders.items() if name != "teacher"}
    counts = [len(each.values) for each in images.open(teacher)]
    if counts[0] < 2:
        raise UserError("One training image is too few: one of several chooses the strength of the regression.")

    def encoded(which: int, name: str) -> Iterator[Batch]:
        return batches(teacher, students, lambda each: images.open(each)[which].images, batch_size, device, name)

    held_out = hold_out(torch.zeros(counts[0], dtype=torch.int64))
    maps, strengths, moments = fit_maps(encoded(0, "training"), held_out)
    mean, variance = moments.channels()
    rebuilt = {key: Rebuilt(mean, variance.sqrt()) for key in maps}
    floor, at_positions = Rebuilt(mean, variance.sqrt()), moments.y / moments.images
    for batch in encoded(1, "test"):
        floor.add(at_positions.expand(batch.patches.shape), batch.patches)
        for key, linear in maps.items():
            rebuilt[key].add(linear(batch.read[key]), batch.patches)
    scores: dict[str, Any] = {name: {"tokens": encoder.tokens} for name, encoder in students.items()}
    for key in maps:
        scores[key[0]][key[1]] = rebuilt[key].scores() | {"ridge": strengths[key]}
    return {
        "position_mean": floor.scores(),
        "encoders": scores,
        "patches": teacher.tokens,
        "train_images": counts[0],
        "test_images": counts[1],
    }


def table_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """Return the result of `evaluate` as rows of text, the heading first."""
    rows = [["encoder (tokens)", "rebuilt from", "R² %", "cosine"]]
    rows.append(["", "position_mean", *_cells(result["position_mean"])])
    for name, scores in result["encoders"].items():
        for source in SOURCES:
            rows.append([f"{name.partition('_')[0]} ({scores['tokens']})", source, *_cells(scores[source])])
    return rows


def _cells(scores: Mapping[str, Any]) -> tuple[str, str]:
    return percent(scores["r2"], scores["confidence_95"]), f"{scores['cosine']:.3f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, evaluate, and return the exit status."""
    parser = CommandParser.of_module("eval.encoders.dense", __doc__)
    add_teacher(parser, "as for train.bootstrap")
    add_teacher_options(parser)
    add_encoder(parser)
    add_tokens(parser)
    add_labelled_images(parser)
    add_arguments(parser)
    return parser.run(_run, argv)


def _run(arguments: argparse.Namespace) -> None:
    device, dtype = begin(arguments, arguments.teacher, arguments.train_images, arguments.test_images)
    images = labelled_images(arguments)
    sources = arguments.teacher, arguments.encoder, arguments.image_size, arguments.teacher_layer
    encoders = open_encoders(*sources, TokenCounts.of_option(arguments.tokens), device, dtype)
    result = evaluate(encoders, images, arguments.batch_size, device=device)
    write_result(arguments.output, result, dtype)
    caption = f"{result['test_images']} test images, {result['train_images']} training images; 95% intervals"
    title = f"{result['patches']} patch tokens rebuilt by a linear map, {name_of(dtype)}"
    Console().print(rich_table(table_rows(result), title, caption))


if __name__ == "__main__":
    sys.exit(main())
