"""A gaze that follows from frame to frame, compared with encoding every frame independently.

    python -m eval.video.gaze --teacher runs/quickstart/teacher --encoder runs/quickstart/encoder
    python -m eval.video.gaze --teacher timm:NAME@WEIGHTS --encoder DIR --photographs IMAGES --frames CLIP_FRAMES

Clips of a shape of easy-VQA, small or large, that moves over a photograph (without --photographs over a plain
background); in the middle of a clip it vanishes and another shape appears elsewhere. For every number of focusing
repeats, the share of tokens that restart is chosen on clips of the training split, by accuracy, or without a text
encoder by the cosine with the teacher; the choice is compared with independent encoding on clips of the test split,
with other shapes and photographs. The measures are the share of RoI centers on the shape and their mean distance from
its center; the cosine of the embedding with that of independent encoding and of the teacher; accuracy among 24 classes
if the teacher has a text encoder; and CPU time. First frames, which are the same in all settings, are left out. Writes
FILE.json, FILE.md and FILE.png.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import torch
from matplotlib.figure import Figure
from torch import Tensor

from eval.cost.report import Section, check_report, publish
from eval.encoders.arguments import add_encoder, add_teacher, add_teacher_options
from eval.intervals import bootstrap_interval
from eval.video.gaze_measures import compare, compare_frames, open_clips, seconds_per_frame
from eval.video.moving_shapes import Size
from sparse_vlm.bootstrap.teachers import open_teacher
from sparse_vlm.bootstrap.zero_shot import class_embeddings
from sparse_vlm.command_line import CommandParser
from sparse_vlm.data.easy_vqa import CLASSES
from sparse_vlm.data.images.files import image_paths
from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.runtime.following import Following
from sparse_vlm.image_files import open_image
from sparse_vlm.measure.timing import require_positive

RESTARTS = (0.0, 0.125, 0.25, 0.5)
SIZES = get_args(Size)
ACCURACY, COSINE = "accuracy", "cosine with teacher"

Measured = dict[str, Tensor]  # float32[N, T] by name of the measure


def repeats_of(encoder: SparseFormer) -> list[int]:
    """Numbers of focusing repeats to compare: all, half of them, and one."""
    repeats = encoder.config.focus.repeats
    return sorted({repeats, max(1, repeats // 2), 1}, reverse=True)


def mean(values: Tensor) -> float:
    """Mean over clips and frames float32[N, T] or float32[T], without first frames."""
    return values[..., 1:].mean().item()


def row_of(settings: Following, measured: Measured) -> dict[str, Any]:
    """Return a setting with the means of its measures."""
    return {**asdict(settings), **{name: mean(values) for name, values in measured.items()}}


def choose(rows: Sequence[Mapping[str, Any]]) -> Following:
    """Choose the share of tokens that restart from rows of one number of repeats and several sizes of shapes."""
    goal = ACCURACY if ACCURACY in rows[0] else COSINE

    def total(restart: float) -> float:
        return sum(row[goal] for row in rows if row["restart"] == restart)

    return Following(restart=max(RESTARTS, key=total), repeats=rows[0]["repeats"])


def differences(followed: Measured, independent: Measured) -> dict[str, Any]:
    """Differences of accuracy and cosine with the teacher, with 95% intervals by bootstrap over clips."""
    found: dict[str, Any] = {}
    for name in (ACCURACY, COSINE):
        if name in followed:
            values = (followed[name] - independent[name])[:, 1:].mean(1).tolist()
            interval = bootstrap_interval(values, [str(clip) for clip in range(len(values))])
            found[name] = {"difference": sum(values) / len(values), "interval_95": list(interval)}
    return found


@torch.inference_mode()
def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure an encoder: choose on one half of the clips, compare on the other."""
    encoder = SparseFormer.from_pretrained(arguments.encoder)
    teacher = open_teacher(arguments.teacher, image_size=arguments.image_size, layer=arguments.teacher_layer)
    captions = [shown.caption for shown in CLASSES]
    classes = None if teacher.text is None else class_embeddings(teacher.text, captions)
    tokens, counts = arguments.tokens, repeats_of(encoder)
    result: dict[str, Any] = {"tokens": tokens or encoder.config.focus.tokens, "clips": arguments.clips}
    options = (arguments.photographs, encoder, teacher)
    choice: dict[int, list[dict[str, Any]]] = {count: [] for count in counts}
    for size in SIZES:
        clips = open_clips(arguments.clips, "train", size, *options)
        for count in counts:
            for restart in RESTARTS:
                settings = Following(restart=restart, repeats=count)
                measured = compare(clips, encoder, settings, tokens, classes)
                choice[count].append({"shapes": size, **row_of(settings, measured)})
    chosen = [choose(choice[count]) for count in counts]
    result |= {"choice": [row for rows in choice.values() for row in rows], "test": []}
    for size in SIZES:
        clips = open_clips(arguments.clips, "test", size, *options)
        whole = compare(clips, encoder, Following(restart=1.0), tokens, classes)
        for settings in [*(Following(restart=1.0, repeats=count) for count in counts), *chosen]:
            measured = compare(clips, encoder, settings, tokens, classes)
            by_frame = {name: values.mean(0).tolist() for name, values in measured.items()}
            compared = {"against_independent": differences(measured, whole), "by_frame": by_frame}
            result["test"].append({"shapes": size, **row_of(settings, measured), **compared})
    if arguments.frames is not None:
        frames = torch.stack([encoder.transform(open_image(path)) for path in image_paths(arguments.frames)])
        settings_of_frames = [*(Following(restart=1.0, repeats=count) for count in counts), *chosen]
        result["frames"] = [
            row_of(settings, compare_frames(frames, encoder, teacher, settings, tokens))
            for settings in settings_of_frames
        ]
        seconds = seconds_per_frame(frames, encoder, settings_of_frames, tokens)
        for row, value in zip(result["frames"], seconds, strict=True):
            row["seconds"] = value
    return result


def sections_of(result: Mapping[str, Any]) -> list[Section]:
    """Tabulate the result."""
    found = []
    for key, title in (("choice", "to choose from"), ("test", "compared"), ("frames", "frames of a clip")):
        if key in result:
            rows = [{name: cell for name, cell in row.items() if name not in OMITTED} for row in result[key]]
            body = [[_text(cell) for cell in row.values()] for row in rows]
            if key == "test":
                rows[0] = {**rows[0], "Δ": 0}
                body = [[*cells, _difference(row)] for cells, row in zip(body, result[key], strict=True)]
            found.append(Section(f"{title}, {result['tokens']} tokens", [list(rows[0]), *body], NOTES.get(key, "")))
    return found


OMITTED = ("by_frame", "against_independent", "largest_change")
NOTES = {
    "test": "restart 1 is independent encoding. Δ: accuracy, or else the cosine with the teacher, minus that of "
    "independent encoding with all repeats, with its 95% interval over clips."
}


def _text(cell: object) -> str:
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)


def _difference(row: Mapping[str, Any]) -> str:
    compared = row["against_independent"]
    value = compared.get(ACCURACY, compared[COSINE])
    low, high = value["interval_95"]
    return f"{value['difference']:+.3f} ({low:+.3f} – {high:+.3f})"


def figure_of(result: Mapping[str, Any]) -> Figure:
    """Draw the measures of the test clips by frame: a row for each size of shapes, a line for each setting."""
    names = ["on shape", ACCURACY if ACCURACY in result["test"][0] else COSINE]
    figure = Figure(figsize=(9, 2.8 * len(SIZES)), layout="constrained")
    for axes_of_size, size in zip(figure.subplots(len(SIZES), len(names), squeeze=False), SIZES, strict=True):
        for axes, name in zip(axes_of_size, names, strict=True):
            for row in result["test"]:
                if row["shapes"] == size:
                    alone = row["restart"] == 1
                    label = f"{'independent' if alone else 'following'}, {row['repeats']} repeats"
                    values = row["by_frame"][name]
                    axes.plot(range(len(values)), values, "--" if alone else "-", label=label)
            axes.set(title=f"{size} shapes", xlabel="frame", ylabel=name)
        axes_of_size[-1].legend(fontsize=7)
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, and return the exit status."""
    parser = CommandParser.of_module("eval.video.gaze", __doc__)
    add_teacher(parser, "see train.bootstrap; accuracy needs one with a text encoder")
    add_encoder(parser)
    add_teacher_options(parser)
    parser.add_argument("--tokens", type=int, help="number of latent tokens (default: the encoder's own)")
    parser.add_argument("--photographs", type=Path, help="folder of images for the backgrounds (default: plain)")
    parser.add_argument("--frames", type=Path, help="folder with the frames of a clip, to measure and time as well")
    parser.add_argument("--clips", type=int, default=48, help="clips of each size and half (default: 48)")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write; .md and .png go beside it")
    return parser.run(_run, argv)


def _run(arguments: argparse.Namespace) -> None:
    inputs = [path for path in (arguments.encoder, arguments.photographs, arguments.frames) if path is not None]
    check_report(arguments.output, inputs)
    require_positive(clips=arguments.clips, tokens=1 if arguments.tokens is None else arguments.tokens)
    torch.set_num_threads(1)
    result = measure(arguments)
    publish(arguments.output, result, sections_of(result), figure_of(result))


if __name__ == "__main__":
    sys.exit(main())
