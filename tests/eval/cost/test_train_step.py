"""The cost of a training step: counts compared with arithmetic, and the report."""

import json
from pathlib import Path

import pytest
import torch

from eval.cost.train_step import main, make_sample, measure, step
from sparse_vlm.measure.llms import SHAPES, open_llm

TINY = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 100}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _tiny_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "tiny", TINY)


def test_backward_costs_twice_as_much_as_forward() -> None:
    llm = open_llm("tiny")
    costs, _ = measure(llm, [4], 6, 1, torch.float32, CPU, repeats=1)
    tokens, width, inner, kv = 10, 48, 96, 24
    linear = 2 * tokens * (2 * width * width + 2 * width * kv + 3 * width * inner) + tokens * width * 100
    attention = 2 * 2 * tokens * tokens * width
    forward_and_back = 3 * linear + 3.5 * attention  # flash attention recomputes its scores in the backward pass
    assert costs[0].gmacs * 1e9 == pytest.approx(forward_and_back, rel=1e-6)


def test_every_weight_is_updated() -> None:
    llm = open_llm("tiny")
    model = llm.load(torch.float32)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    step(model, torch.optim.AdamW(model.parameters(), lr=1e-3), **make_sample(llm, 4, 6, 2))
    assert all((weight != before[name]).any() for name, weight in model.named_parameters())
    assert all(weight.grad is None for weight in model.parameters())


def test_memory_of_weights_moments_and_tokens() -> None:
    llm = open_llm("tiny")
    costs, held = measure(llm, [4, 40], 6, 1, torch.float32, CPU, repeats=1)
    tensors = len(list(llm.load(torch.float32).parameters()))
    assert held == 3 * 4 * llm.parameters + 4 * tensors, "AdamW keeps a counter for each tensor"
    assert costs[1].peak_bytes > costs[0].peak_bytes >= 4 * llm.parameters, "at least the gradients"


def test_a_frozen_model_has_no_moments_and_its_step_costs_less() -> None:
    llm = open_llm("tiny")
    (trained,), _ = measure(llm, [4], 6, 1, torch.float32, CPU, repeats=1)
    (frozen,), held = measure(llm, [4], 6, 1, torch.float32, CPU, repeats=1, frozen=True)
    assert held == 4 * llm.parameters
    assert frozen.gmacs < 0.8 * trained.gmacs, "weights have no gradients"
    assert frozen.peak_bytes < trained.peak_bytes - 2 * llm.parameters


def test_the_report_has_every_measurement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "step.json"
    sizes = ["--visual_tokens", "4", "9", "--text_tokens", "6", "--repeats", "2"]
    assert main(["--llm", "tiny", *sizes, "--output", str(output)]) == 0
    report = json.loads(output.read_text())
    assert report["weights"] == "random"
    assert [(row["visual_tokens"], len(row["seconds"])) for row in report["steps"]] == [(4, 2), (9, 2)]
    assert output.with_suffix(".png").stat().st_size > 1000
    assert "weights: random" in output.with_suffix(".md").read_text()
    assert "visual tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--llm", "tiny", "--visual_tokens", "0"], "--visual_tokens must be at least 1, got 0."),
        (["--llm", "tinny"], "Unknown LLM 'tinny'"),
    ],
)
def test_bad_arguments(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert sentence in capsys.readouterr().err
