"""Write the quickstart's report: numbers in report.json, tables and figures in report.md.

    python -m train.quickstart.report --output_dir runs/quickstart

`train.quickstart` does this at its end.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparse_vlm.command_line import CommandParser
from sparse_vlm.draw import roi_figure
from sparse_vlm.encoder import SparseFormer
from sparse_vlm.figures import accuracy_figure, loss_figure, save_figure
from sparse_vlm.files import write_json, write_text
from sparse_vlm.image_files import open_image
from train.pipeline import Step, read_seconds
from train.quickstart.paths import Paths
from train.quickstart.steps import FAST, FULL, TOWERS, all_steps, reads_test_split
from train.stages.log import read_log

SMOKE_RUN = "Smoke run (QUICKSTART_FAST): the models are hardly trained, so the accuracies mean nothing."


def write_report(paths: Paths, steps: Sequence[Step], fast: bool = False) -> dict[str, Any]:
    """Write report.json, report.md and the figures, and return the content of report.json.

    Args:
        paths: the run's files.
        steps: the run's steps.
        fast: the run was a smoke run (QUICKSTART_FAST), which report.md says first.
    """
    report = collect(paths, steps)
    write_json(paths.root / "report.json", report)
    encoder = SparseFormer.from_pretrained(paths.encoder)
    shown = [open_image(paths.test_images / f"{number}.png") for number in range(4)]
    save_figure(roi_figure(encoder, shown), paths.root / "rois.png")
    logs = {
        name: read_log(paths.root / name / "log.jsonl")
        for name in ("teacher", "encoder", "reading", "aligned", "model")
    }
    save_figure(loss_figure(logs), paths.root / "losses.png")
    save_figure(accuracy_figure(_bars(paths)), paths.root / "accuracy.png")
    write_text(paths.root / "report.md", as_markdown(report, fast))
    return report


def collect(paths: Paths, steps: Sequence[Step]) -> dict[str, Any]:
    """Collect the numbers of all steps, and the names of the steps that read test data."""
    scores, zero_shot = _read(paths.scores), _read(paths.zero_shot)
    dense = _read(paths.dense_scores) if paths.dense_scores.exists() else None
    seconds = read_seconds(paths.root)
    return {
        "accuracy": scores["scores"]["accuracy"],
        "accuracy_by_type": scores["scores"]["accuracy_by_type"],
        "confidence_95": scores["confidence_95"]["accuracy"],
        "questions": scores["questions"],
        "floor_no_image": scores["floors"]["no_image"]["accuracy"],
        "floor_majority": scores["floors"]["majority"]["accuracy"],
        "floor_question_only": scores["floors"]["question_only"]["accuracy"],
        "floors_by_type": {name: floor["accuracy_by_type"] for name, floor in scores["floors"].items()},
        "dense_accuracy": dense and dense["scores"]["accuracy"],
        "dense_accuracy_by_type": dense and dense["scores"]["accuracy_by_type"],
        "compared": _compare(paths),
        "teacher_zero_shot": zero_shot["teacher"],
        "student_zero_shot": zero_shot["student"],
        "student_zero_shot_by_tokens": {
            name.split("_")[1]: accuracy for name, accuracy in zero_shot.items() if name.endswith("_tokens")
        },
        "alignment_cosine": _read(paths.encoder / "alignment.json")["alignment_cosine"],
        "seconds_by_step": seconds.by_step,
        "steps_resumed": seconds.resumed,
        "steps_that_read_test_data": [step.name for step in steps if reads_test_split(step, paths)],
        "visual_tokens": _read(paths.model / "processor_config.json")["num_image_tokens"],
    }


def _compare(paths: Paths) -> list[dict[str, Any]] | None:
    """Return visual tokens, seconds per tuning step and seconds to the first token, of SparseFormer and dense tower.

    None if the comparison has not run to its end.
    """
    if not (paths.first_token.exists() and paths.step_time.exists()):
        return None
    first_tokens, steps = _read(paths.first_token)["results"], _read(paths.step_time)["results"]
    return [
        {
            "tower": name,
            "visual_tokens": first_token["visual_tokens"],
            "step_seconds": step["median_seconds"],
            "first_token_seconds": first_token["median_seconds"]["first_token"],
        }
        for name, first_token, step in zip(TOWERS, first_tokens, steps, strict=True)
    ]


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _bars(paths: Paths) -> dict[str, dict[str, float]]:
    """Return the accuracy by question type of the model and the floors."""
    scores = _read(paths.scores)
    rows = {"model": scores["scores"], **{f"floor: {name}": floor for name, floor in scores["floors"].items()}}
    return {name: {"all": row["accuracy"], **row["accuracy_by_type"]} for name, row in rows.items()}


def _comparison_lines(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    table = [
        f"| {row['tower']} | {row['visual_tokens']} | {row['step_seconds']:.2f} | {row['first_token_seconds']:.3f} |"
        for row in rows
    ]
    heading = "| vision tower | visual tokens | tuning step, s (median) | first token, s (median) |"
    return [heading, "|---|---:|---:|---:|", *table, ""]


def _accuracy_lines(report: dict[str, Any]) -> list[str]:
    """Return the table of accuracies by question type: model, dense tower and floors."""
    kinds = list(report["accuracy_by_type"])
    rows = [["SparseFormer + SmolLM2-135M", report["accuracy"], report["accuracy_by_type"]]]
    if report["dense_accuracy"] is not None:
        dense = "dense teacher + SmolLM2-135M, with settings not tuned for it"
        rows.append([dense, report["dense_accuracy"], report["dense_accuracy_by_type"]])
    for name, by_type in report["floors_by_type"].items():
        rows.append([f"floor: {name.replace('_', ' ')}", report[f"floor_{name}"], by_type])
    return [
        f"| | all | {' | '.join(kinds)} |",
        f"|---|---:|{'---:|' * len(kinds)}",
        *(f"| {name} | {total:.2%} | {' | '.join(f'{by[k]:.2%}' for k in kinds)} |" for name, total, by in rows),
    ]


def as_markdown(report: dict[str, Any], fast: bool = False) -> str:
    """Format the report as Markdown; that of a smoke run (`fast`) says that its numbers mean nothing."""
    low, high = report["confidence_95"]
    seconds = report["seconds_by_step"]
    lines = [
        "# Quickstart",
        "",
        *([SMOKE_RUN, ""] if fast else []),
        f"Exact match on {report['questions']} easy-VQA test questions, greedy answers, "
        f"{report['visual_tokens']} visual tokens. 95% interval of the model's accuracy (bootstrap over images): "
        f"{low:.2%} – {high:.2%}.",
        "",
        *_accuracy_lines(report),
        "",
        "![accuracy](accuracy.png)",
        "",
        "| encoder | |",
        "|---|---:|",
        f"| zero-shot accuracy, teacher (64 patch tokens) | {report['teacher_zero_shot']:.2%} |",
        f"| zero-shot accuracy, SparseFormer ({report['visual_tokens']} tokens) | {report['student_zero_shot']:.2%} |",
        *(
            f"| – the same weights with {tokens} tokens | {accuracy:.2%} |"
            for tokens, accuracy in report["student_zero_shot_by_tokens"].items()
        ),
        f"| cosine of their embeddings on the validation images | {report['alignment_cosine']:.4f} |",
        "",
        *_comparison_lines(report["compared"] or []),
        "RoIs and sampling points of the SparseFormer at each sampling step:",
        "",
        "![RoIs](rois.png)",
        "",
        "![losses](losses.png)",
        "",
        "| step | seconds |",
        "|---|---:|",
        *(f"| {name} | {value:.0f} |" for name, value in seconds.items()),
        f"| **all** | **{sum(seconds.values()):.0f}** |",
        "",
    ]
    if report["steps_resumed"]:
        lines += [
            f"Resumed, so without the seconds before the interruption: {', '.join(report['steps_resumed'])}.",
            "",
        ]
    lines += [
        "The captions for the language model and the projector are derived from the training questions and answers. "
        "Only these steps read test images or questions: "
        f"{', '.join(report['steps_that_read_test_data'])}.",
        "",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    parser = CommandParser.of_module("train.quickstart.report", __doc__)
    parser.add_argument("--output_dir", type=Path, required=True, help="directory of the finished quickstart")
    parser.add_argument("--compare", action="store_true", help="the quickstart was run with --compare")
    parser.add_argument("--fast", action="store_true", help="it was a smoke test (QUICKSTART_FAST)")
    return parser.run(_run, argv)


def _run(arguments: argparse.Namespace) -> None:
    paths = Paths(arguments.output_dir)
    steps = all_steps(paths, FAST if arguments.fast else FULL, arguments.compare)
    write_report(paths, steps, arguments.fast)


if __name__ == "__main__":
    sys.exit(main())
