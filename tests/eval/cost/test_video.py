"""The cost of a minute of video: counts compared with arithmetic, the report, and bad options."""

import json
from pathlib import Path

import pytest
import torch

from eval.cost.llm import count
from eval.cost.video import cost_of, main
from sparse_vlm.measure.llms import SHAPES, open_llm
from sparse_vlm.measure.towers import open_tower

DENSE = "timm:vit_tiny_patch16_224@32"  # four tokens of 192 channels


def test_the_counts_match_arithmetic() -> None:
    tower, llm = open_tower(DENSE), open_llm("smollm2-135m")
    cost = cost_of(tower, 2, 30, llm, torch.bfloat16)
    assert (cost.tokens, cost.frames) == (60, 30)
    assert cost.encoder_gmacs == 30 * tower.gmacs
    assert cost.cache_bytes == 60 * 30 * 2 * 3 * 64 * 2  # tokens, layers, keys and values, heads, channels, bytes
    tokens, width, inner, kv = 60, 576, 1536, 192
    layer = tokens * (2 * width * width + 2 * width * kv + 3 * width * inner) + 2 * tokens * tokens * width
    projector = tokens * (192 * width + width * width)
    assert cost.prefill_gmacs * 1e9 == pytest.approx(30 * layer + projector + width * 49152, rel=1e-9)
    alone = count(tower, llm, 0, torch.bfloat16)  # an image of four tokens
    assert cost_of(tower, 2, 2, llm, torch.bfloat16).prefill_gmacs == alone.prefill_gmacs


def test_the_report(tmp_path: Path, tiny_variant: str, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "video.json"
    models = ["--models", f"{tiny_variant}@32", DENSE, "--tokens", "4,9", "--pooled_tokens", "1"]
    shown = ["--fps", "0.5", "--seconds", "20", "--llms", "tiny", "--output", str(output)]
    assert main([*models, *shown]) == 0
    report = json.loads(output.read_text())
    assert (report["frames"], report["dtype"]) == (10, "bfloat16")
    [result] = report["results"]
    assert result["llm"] == "tiny"
    assert [row["frame_tokens"] for row in result["rows"]] == [4, 9, 1]
    layers, width = SHAPES["tiny"]["num_hidden_layers"], SHAPES["tiny"]["hidden_size"]
    assert [row["cache_bytes"] for row in result["rows"]] == [10 * n * layers * 2 * width * 2 for n in (4, 9, 1)]
    table = output.with_suffix(".md").read_text()
    assert "20 s of video at 0.5 frames per second, bfloat16" in table
    assert "| 9 | 90 |" in table.replace("  ", "")
    assert output.with_suffix(".png").stat().st_size > 1000
    assert main(["--models", DENSE, "--pooled_tokens", "4", *shown]) == 0  # no SparseFormer for --tokens


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--fps", "0"], "--fps and --seconds must be numbers above 0, got 0 and 60."),
        (["--seconds", "nan"], "--fps and --seconds must be numbers above 0, got 2 and nan."),
        (["--pooled_tokens", "5"], "has 4 tokens, which cannot be pooled to --pooled_tokens 5: lower it."),
        (["--pooled_tokens", "0"], "--pooled_tokens must be at least 1, got 0."),
        (["--output", "a.txt"], "--output must end in .json"),
    ],
)
def test_bad_options(options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["--output", str(tmp_path / "a.json")]
    assert main(["--models", DENSE, "--llms", "tiny", *output, *options]) == 2
    assert said in capsys.readouterr().err
