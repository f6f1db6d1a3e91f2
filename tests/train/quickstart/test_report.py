"""The numbers of a report, complete or with an interrupted comparison."""

import json
from pathlib import Path
from typing import Any

import pytest

from train.pipeline import SECONDS_FILE, Step
from train.quickstart.paths import Paths
from train.quickstart.report import as_markdown, collect

SCORES = {"accuracy": 0.5, "accuracy_by_type": {"colour": 0.25, "shape": 0.75}}
EVALUATED = {
    "scores": SCORES,
    "confidence_95": {"accuracy": [0.4, 0.6]},
    "questions": 8,
    "floors": dict.fromkeys(("no_image", "majority", "question_only"), SCORES),
}
FIRST_TOKENS = [{"visual_tokens": count, "median_seconds": {"first_token": count / 100}} for count in (16, 64)]
STEPS_RUN = [
    Step("align", "", ("--eval_data_path", "validation"), Path("a")),
    Step("score", "", ("--split", "test"), Path("b")),
]
STEPS = [{"median_seconds": seconds} for seconds in (2.0, 5.0)]


def write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    """The paths of a quickstart without a comparison."""
    paths = Paths(tmp_path)
    write(paths.scores, EVALUATED)
    write(paths.zero_shot, {"teacher": 0.9, "student": 0.8, "student_9_tokens": 0.7, "student_25_tokens": 0.85})
    write(paths.encoder / "alignment.json", {"alignment_cosine": 0.9})
    write(paths.model / "processor_config.json", {"num_image_tokens": 16})
    (tmp_path / SECONDS_FILE).write_text('{"step": "data", "seconds": 1.5, "resumed": false}\n')
    return paths


def test_only_a_complete_comparison_is_reported(paths: Paths) -> None:
    """The run may be interrupted after the dense model's scores, or after the first of two timings."""
    files = [(paths.dense_scores, EVALUATED), (paths.step_time, {"results": STEPS})]
    for file, content in [(None, None), *files]:
        if file is not None:
            write(file, content)
        report = collect(paths, STEPS_RUN)
        assert report["compared"] is None
        assert (report["dense_accuracy"] is None) == (file is None)
        assert "tuning step" not in as_markdown(report)
    write(paths.first_token, {"results": FIRST_TOKENS})
    text = as_markdown(collect(paths, STEPS_RUN))
    assert "| SparseFormer | 16 | 2.00 | 0.160 |\n| dense teacher | 64 | 5.00 | 0.640 |" in text


def test_only_the_report_of_a_smoke_run_says_that_its_accuracies_mean_nothing(paths: Paths) -> None:
    report = collect(paths, STEPS_RUN)
    smoke = "Smoke run (QUICKSTART_FAST): the models are hardly trained, so the accuracies mean nothing."
    assert as_markdown(report, fast=True).splitlines()[:3] == ["# Quickstart", "", smoke]
    assert "Smoke run" not in as_markdown(report)


def test_the_report_names_the_steps_that_read_test_data(paths: Paths) -> None:
    report = collect(paths, STEPS_RUN)
    assert report["steps_that_read_test_data"] == ["score"]
    assert "Only these steps read test images or questions: score." in as_markdown(report)


def test_the_report_shows_the_student_at_each_count(paths: Paths) -> None:
    report = collect(paths, STEPS_RUN)
    assert report["student_zero_shot_by_tokens"] == {"9": 0.7, "25": 0.85}
    text = as_markdown(report)
    assert (
        "| zero-shot accuracy, SparseFormer (16 tokens) | 80.00% |\n| – the same weights with 9 tokens | 70.00% |"
        in text
    )
