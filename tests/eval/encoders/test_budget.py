"""Accuracy against mean tokens: who gets more tokens, and what it costs."""

import json
from pathlib import Path

import pytest
import torch

from eval.encoders.budget import evaluate, main, margins, spend
from sparse_vlm.encoder import SparseFormer


def test_the_least_sure_images_get_more_tokens() -> None:
    sureness = torch.tensor([0.9, 0.1, 0.5, 0.7])
    correct, with_more = torch.tensor([True, False, True, False]), torch.tensor([False, True, True, True])
    rows = {row["share"]: row for row in spend(sureness, correct, with_more, tokens=4, more=16)}
    assert (rows[0.0]["accuracy"], rows[0.0]["mean_tokens"]) == (0.5, 4)
    assert (rows[0.3]["accuracy"], rows[0.3]["mean_tokens"]) == (0.75, 8), "image 1 alone is encoded again"
    assert (rows[1.0]["accuracy"], rows[1.0]["mean_tokens"]) == (0.75, 20)


def test_margins_are_between_0_and_1_and_order_images() -> None:
    classes = torch.eye(3)
    embeddings = torch.tensor([[1.0, 0.99, 0.0], [3.0, 0.0, 0.0]])
    near, far = margins(embeddings, classes).tolist()
    assert 0 < near < 0.5 < far <= 1


def test_the_spread_costs_three_times_the_few_tokens() -> None:
    embeddings = {count: torch.eye(4) for count in (4, 8, 16)}
    rows = evaluate(embeddings, torch.eye(4), torch.arange(4), few=4, more=16)
    assert [rows[name][0]["mean_tokens"] for name in ("spread", "margin")] == [12, 4]
    assert rows["spread"][-1]["accuracy"] == 1


@pytest.mark.slow
def test_the_command_measures_an_encoder(
    clip_dir: Path, tiny_encoder: SparseFormer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_encoder.save_pretrained(tmp_path / "encoder")
    output = tmp_path / "budget.json"
    arguments = ["--teacher", str(clip_dir), "--encoder", str(tmp_path / "encoder"), "--few", "2", "--more", "5"]
    assert main([*arguments, "--dtype", "bfloat16", "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    assert (result["images"], len(result["spread"]), result["dtype"]) == (888, 7, "bfloat16")
    assert result["margin"][-1]["mean_tokens"] == 7
    assert "unsure images" in capsys.readouterr().out


def test_few_must_be_less_than_more(clip_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--teacher", str(clip_dir), "--encoder", str(tmp_path), "--few", "16", "--more", "16"]) == 2
    assert "got 16 and 16" in capsys.readouterr().err
