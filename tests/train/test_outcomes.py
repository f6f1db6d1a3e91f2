"""train.outcomes: what a step showed, from its result files."""

import json
from pathlib import Path
from typing import Any

from train import outcomes


def write(file: Path, content: Any) -> Path:
    file.write_text(json.dumps(content))
    return file


def test_loss(tmp_path: Path) -> None:
    """The last losses are averaged; lines of evaluations and losses that are not finite do not count."""
    losses: list[dict[str, Any]] = [{"step": step, "loss": 8.0 if step == 1 else step / 100} for step in range(1, 1201)]
    lines = [*losses, {"step": 1200, "loss": None}, {"step": 1200, "eval_loss": 9.0}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert outcomes.loss(tmp_path) == "loss 8 → 12 in 1,200 steps"


def test_vision(tmp_path: Path) -> None:
    write(tmp_path / "alignment.json", {"alignment_cosine": 0.95149, "images": 1200})
    assert outcomes.cosine(tmp_path) == "cosine 0.951 with the teacher on 1,200 held-out images"
    file = write(tmp_path / "zero_shot.json", {"teacher": 0.99, "student": 0.98765, "images": 888})
    assert outcomes.zero_shot(file) == "98.8% of 888 images, teacher 99.0%"


def test_language(tmp_path: Path) -> None:
    write(tmp_path / "processor_config.json", {"num_image_tokens": 16})
    assert outcomes.tokens(tmp_path) == "16 visual tokens"
    (tmp_path / "answers.jsonl").write_text('{"text": "é"}\n' * 9673, encoding="utf-8")
    assert outcomes.answers(tmp_path / "answers.jsonl") == "9,673 answers"
    report = {"scores": {"accuracy": 0.99124}, "questions": 9673, "floors": {"majority": {"accuracy": 0.5}}}
    file = write(tmp_path / "scores.json", report)
    assert outcomes.accuracy(file) == "99.1% of 9,673 questions"
    report["floors"] = {"no_image": {"accuracy": 0.6}}
    assert outcomes.accuracy(write(file, report)) == "99.1% of 9,673 questions, 60.0% without the images"


def test_data_and_times(tmp_path: Path) -> None:
    assert outcomes.samples(write(tmp_path / "data.json", [{}] * 1280)) == "1,280 samples for the instruction tuning"
    file = write(tmp_path / "times.json", {"results": [{"median_seconds": 2.0}, {"median_seconds": 5.1234}]})
    assert outcomes.seconds(file, ["a", "b"]) == "a 2 s, b 5.12 s"
    write(file, {"results": [{"median_seconds": {"x": 2.0, "first": 0.25}}]})
    assert outcomes.seconds(file, ["a"], "first") == "a 0.25 s"
