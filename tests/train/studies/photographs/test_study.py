"""The whole study on tiny parts: complete, resumed, and without a test photograph before the report."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sparse_vlm.encoder import SparseFormer, SparseFormerConfig
from train.studies.photographs.__main__ import main

OPTIONS: dict[str, Any] = {
    "training_shards": "train-{00..01}.tar",
    "teacher_layer": 4,
    "tokens": "4,6",
    "learning_rates": "1e-3",
    "training_images": 20,
    "validation_images": 10,
    "test_images": 20,
    "texts": 4,
    "word_start": 20,
    "align_steps": 1,
    "conversations": 8,
}


@pytest.fixture(scope="session")
def elastic_dir(tmp_path_factory: pytest.TempPathFactory, tiny_config: SparseFormerConfig) -> Path:
    """An untrained SparseFormer for images of 32 pixels, which says that it was trained with 4 to 6 tokens."""
    directory = tmp_path_factory.mktemp("elastic") / "encoder"
    torch.manual_seed(0)
    preprocessing = replace(tiny_config.preprocessing, resize=32, crop=32)
    SparseFormer(replace(tiny_config, preprocessing=preprocessing, trained_tokens="4-6")).save_pretrained(directory)
    return directory


@pytest.fixture
def words(shards: Path, elastic_dir: Path, clip_dir: Path, llm_dir: Path, tmp_path: Path) -> dict[str, Any]:
    """The options of a tiny study."""
    paths = {"output_dir": tmp_path / "out", "photographs": shards, "encoder": elastic_dir}
    return {**paths, "teacher": clip_dir, "llm": llm_dir, **OPTIONS}


def run(words: dict[str, Any], *flags: str, **changes: Any) -> int:
    return main([word for name, value in (words | changes).items() for word in (f"--{name}", str(value))] + [*flags])


@pytest.mark.slow
def test_the_whole_study(words: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    out = words["output_dir"]
    assert run(words) == 0
    report = json.loads((out / "report.json").read_text())
    rows = {(row["tower"], row["visual_tokens"]): row for row in report["models"]}
    assert list(rows) == [("SparseFormer", 4), ("SparseFormer", 6), ("dense teacher", 16)]
    for row in report["models"]:
        assert row["questions"] == 80
        assert set(row["scores"]["accuracy_by_type"]) == {"name", "yes/no", "choice"}
        assert row["most_frequent_answer"]["accuracy_by_type"]["yes/no"] == 0.5
    for chosen in report["choice"].values():
        best = max(chosen["validation"].values())
        assert chosen["validation"][f"{chosen['learning_rate']:g}"] == best
    readers = report["steps_that_read_test_photographs"]
    steps = list(report["seconds_by_step"])
    assert readers == steps[-len(readers) :], "a step before the report reads test photographs"
    assert "SparseFormer, 4 tokens, shown grey images" in (out / "report.md").read_text()
    assert (out / "accuracy.png").stat().st_size > 1000
    # again: nothing is left to do; without one result, its step alone runs
    lines = (out / "seconds.jsonl").read_text().count("\n")
    (out / "dense" / f"answers_{report['choice']['dense']['learning_rate']:g}" / "test.json").unlink()
    assert run(words) == 0
    assert (out / "seconds.jsonl").read_text().count("\n") == lines + 2  # generation resumes, and scores
    assert json.loads((out / "report.json").read_text())["models"] == report["models"]
    capfd.readouterr()
    assert run(words, tokens="4") == 2
    assert capfd.readouterr().err == (
        f"error: {out} was made with tokens [4, 6], but now it is [4]. Choose another --output_dir, or remove the "
        "folder.\n"
    )
