"""The measurement of answers: what is asked, the shape of a random language model, and the report."""

import json
from pathlib import Path

import pytest
import torch

from eval.cost.answering import ALONE, main, measure, replace_llm
from sparse_vlm.vlm.answering import Answerer
from sparse_vlm.vlm.loading import load_vlm


def test_a_random_language_model_of_another_shape(vlm_dir: Path) -> None:
    model, processor = load_vlm(vlm_dir, torch.bfloat16)
    made = replace_llm(model, "tiny")
    text = made.config.get_text_config()
    assert (text.hidden_size, text.num_hidden_layers) == (64, 2)
    assert text.vocab_size == model.config.get_text_config().vocab_size
    assert made.dtype == torch.bfloat16
    assert made.model.vision_tower is model.model.vision_tower
    one, many = measure(Answerer(made, processor, 3, 4), images=2, each=5, repeats=2)
    assert (one.questions, many.questions) == (ALONE, 10)
    assert len(one.seconds) == len(many.seconds) == 2
    assert min(one.peak_bytes, many.peak_bytes) > 0


def test_the_report(vlm_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "answering.json"
    sizes = ["--new_tokens", "2", "--images", "2", "--questions_per_image", "3", "--repeats", "1"]
    arguments = ["--model", str(vlm_dir), *sizes, "--device", "cpu", "--dtype", "float32", "--output", str(output)]
    assert main([*arguments, "--visual_tokens", "9"]) == 0
    report = json.loads(output.read_text())
    assert (report["visual_tokens"], report["new_tokens"], report["dtype"]) == (9, 2, "float32")
    assert [result["how"] for result in report["results"]] == ["one at a time", "in batches"]
    printed = capsys.readouterr().out
    assert "new tokens/s" in printed
    assert "new tokens/s" in output.with_suffix(".md").read_text()
    assert output.with_suffix(".png").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--new_tokens", "0"], "--new_tokens must be at least 1, got 0"),
        (["--images", "4000"], "images of easy-VQA have 8 questions: ask for fewer"),
        (["--llm", "tinyllama"], "tinyllama-1.1b"),
        (["--batch_size", "0"], "at least 1, got 0"),
    ],
)
def test_bad_input(
    vlm_dir: Path, tmp_path: Path, options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "answering.json"
    assert main(["--model", str(vlm_dir), "--device", "cpu", "--output", str(output), *options]) == 2
    assert sentence in capsys.readouterr().err
    assert not output.exists()
