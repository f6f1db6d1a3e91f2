"""Time to the first token: the timed token is the one that `generate` returns, and the report has every run."""

import json
from pathlib import Path

import pytest

from eval.cost.first_token import main, time_first_token
from sparse_vlm.data import easy_vqa
from sparse_vlm.image_files import open_image
from sparse_vlm.vlm.answering import Answerer
from sparse_vlm.vlm.chat import GREEDY, encode_prompt


@pytest.mark.slow
def test_the_timed_token_is_the_one_that_generate_returns(answerer: Answerer) -> None:
    model, processor = answerer.model, answerer.processor
    tokens = []
    for question in easy_vqa.load_questions("test")[:40:5]:
        image = open_image(easy_vqa.image_path(easy_vqa.split_folder("test") / "images", question.image_id))
        inputs = encode_prompt(processor, image, question.text)
        token, seconds = time_first_token(model, inputs)
        ids = model.generate(**inputs, max_new_tokens=1, **GREEDY)  # type: ignore[misc]  # transformers' own annotation
        assert token == ids[0, -1]
        assert min(seconds) > 0
        tokens.append(token)
    assert len(set(tokens)) > 1, "a constant would pass as well"


@pytest.mark.slow
def test_the_report_has_every_model(vlm_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    output = tmp_path / "first.json"
    assert main(["--models", str(vlm_dir), str(vlm_dir), "--output", str(output), "--limit", "3"]) == 0
    assert "prefill" in capsys.readouterr().out
    report = json.loads(output.read_text())
    assert report["threads"] == 1
    assert len(report["results"]) == 2
    for result in report["results"]:
        assert result["visual_tokens"] == 6
        assert len(result["runs"]) == len(result["prompt_tokens"]) == 3
        totals = sorted(sum(run.values()) for run in result["runs"])
        assert result["median_seconds"]["first_token"] == pytest.approx(totals[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "nowhere", "--output", "x.json"], "There is no model directory nowhere"),
        (["--models", "nowhere", "--output", "x.json", "--limit", "0"], "--limit must lie in 1…"),
        (["--models", "nowhere", "--output", "x.json", "--threads", "0"], "--threads must be at least 1"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
