"""The cost of LLMs: counts compared with arithmetic, the report, and models that are too large to time."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eval.cost.llm import count, main, make_projector, measure, prefill, shortage
from sparse_vlm.errors import UserError
from sparse_vlm.measure.llms import SHAPES, open_llm
from sparse_vlm.measure.towers import open_tower, open_towers

TINY = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 100}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2}
TOWER = "timm:vit_tiny_patch16_224@32"  # four tokens of 192 channels
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _tiny_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "tiny", TINY)


def test_the_prefill_count_matches_arithmetic() -> None:
    row = count(open_tower(TOWER), open_llm("tiny"), 6, torch.float32)
    tokens, width, inner, kv = 4 + 6, 48, 96, 24
    layer = tokens * (2 * width * width + 2 * width * kv + 3 * width * inner) + 2 * tokens * tokens * width
    projector = 4 * (192 * width + width * width)
    assert row.prefill_gmacs * 1e9 == pytest.approx(2 * layer + projector + width * 100, rel=1e-9)
    assert row.cache_bytes == 2 * 2 * tokens * kv * 4
    assert count(open_tower(TOWER), open_llm("tiny"), 6, torch.bfloat16).cache_bytes == row.cache_bytes / 2


def test_the_cache_of_a_real_run_has_the_counted_size() -> None:
    tower, llm = open_tower(TOWER), open_llm("tiny")
    words = torch.zeros(1, 6, dtype=torch.long)
    with torch.inference_mode():
        out = prefill(llm.load(torch.float32), make_projector(tower, llm), torch.randn(1, 4, 192), words)
    assert out.logits is not None
    assert out.logits.shape == (1, 1, 100), "only the last position"
    cache = out.past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)  # type: ignore[union-attr]
    assert held == count(tower, llm, 6, torch.float32).cache_bytes


@pytest.mark.parametrize(
    ("name", "parameters"), [("smollm2-135m", 134.5), ("tinyllama-1.1b", 1100), ("vicuna-7b", 6738)]
)
def test_the_shapes_have_the_published_parameters(name: str, parameters: float) -> None:
    assert open_llm(name).parameters / 1e6 == pytest.approx(parameters, rel=1e-3)


@pytest.mark.slow
def test_the_report_has_every_measurement(
    tmp_path: Path, vlm_dir: Path, tiny_variant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output, own = tmp_path / "llm.json", str(vlm_dir.parent / "llm")
    arguments = ["--models", TOWER, f"{tiny_variant}@32", "--prompt_tokens", "6", "--repeats", "2"]
    assert main(["--llms", "tiny", own, *arguments, "--output", str(output)]) == 0
    tiny, opened = json.loads(output.read_text())["results"]
    assert (tiny["weights"], opened["weights"], opened["llm"]) == ("random", "its own", "llm")
    for row in tiny["towers"]:
        both = [sum(pair) for pair in zip(row["tower_seconds"], row["prefill_seconds"], strict=True)]
        assert row["median_seconds"]["first_token"] == pytest.approx(sum(both) / 2)
        assert row["peak_bytes"] > row["cache_bytes"]
    assert output.with_suffix(".png").stat().st_size > 1000
    assert "first token" in capsys.readouterr().out


def test_one_encoder_with_several_numbers_of_tokens(tiny_variant: str) -> None:
    towers = open_towers([tiny_variant], tokens=[4, 9])
    result = measure(open_llm("tiny"), towers, 6, "float32", CPU, repeats=1)
    four, nine = result.rows
    assert not result.untimed
    assert four.tower.gmacs < nine.tower.gmacs
    assert nine.cache_bytes * (4 + 6) == four.cache_bytes * (9 + 6)
    one = shortage(replace(open_llm("tiny"), parameters=10**15), towers[:1], torch.float32, CPU)
    both = shortage(replace(open_llm("tiny"), parameters=10**15), towers, torch.float32, CPU)
    assert one.split(",")[1] == both.split(",")[1], "they share their weights"


def test_models_that_do_not_fit_are_counted_and_the_report_says_so() -> None:
    llm = replace(open_llm("tiny"), parameters=10**15)
    result = measure(llm, [open_tower(TOWER)], 6, "float32", CPU, repeats=1)
    assert result.untimed.startswith("counted, not timed: 4000000.0 GB of weights, ")
    assert result.rows[0].prefill_gmacs > 0
    assert result.rows[0].medians() == {}


def test_unknown_llms_are_refused() -> None:
    with pytest.raises(UserError, match=r"Unknown LLM 'smolm2-135m'\. Did you mean 'smollm2-135m'"):
        open_llm("smolm2-135m")
    with pytest.raises(UserError, match="There is no LLM directory"):
        open_llm("/nowhere/llm")


def test_bad_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--prompt_tokens", "0"]) == 2
    assert "--prompt_tokens must be at least 1, got 0." in capsys.readouterr().err
