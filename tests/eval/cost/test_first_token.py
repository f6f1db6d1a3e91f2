"""Time to the first token: the timed token is the one that `generate` returns, and the report has every run."""

import json
from pathlib import Path

import pytest

from eval.cost.first_token import main, time_first_token
from sparse_vlm.data import easy_vqa
from sparse_vlm.image_files import open_image
from sparse_vlm.vlm.answering import Answerer
from sparse_vlm.vlm.build import build_vlm
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


@pytest.mark.slow
def test_one_model_with_several_numbers_of_visual_tokens(vlm_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "first.json"
    arguments = ["--models", str(vlm_dir), "--visual_tokens", "4,6,9", "--output", str(output), "--limit", "3"]
    assert main(arguments) == 0
    results = json.loads(output.read_text())["results"]
    assert [result["visual_tokens"] for result in results] == [4, 6, 9]
    four, six, nine = (result["prompt_tokens"] for result in results)
    assert [more - fewer for more, fewer in zip(nine, four, strict=True)] == [5] * 3
    assert [more - fewer for more, fewer in zip(six, four, strict=True)] == [2] * 3
    rows = output.with_suffix(".md").read_text().splitlines()[4:7]
    assert [row.split("|")[2].strip() for row in rows] == ["4", "6", "9"]


@pytest.mark.slow
def test_numbers_of_visual_tokens_that_no_model_can_have(
    vlm_dir: Path, clip_dir: Path, llm_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    dense = tmp_path / "dense"
    build_vlm(clip_dir, llm_dir, dense)
    options = ["--limit", "2", "--output", str(tmp_path / "first.json")]
    assert main(["--models", str(dense), "--visual_tokens", "4", *options]) == 2
    assert "--visual_tokens needs a model with a SparseFormer" in capsys.readouterr().err
    assert main(["--models", str(vlm_dir), "--visual_tokens", "9,9000", *options]) == 2
    assert "A question with 9000 visual tokens and an answer of 1 tokens make 90" in capsys.readouterr().err
    assert main(["--models", str(vlm_dir), str(dense), "--visual_tokens", "4,9", *options]) == 0
    results = json.loads((tmp_path / "first.json").read_text())["results"]
    assert [result["visual_tokens"] for result in results] == [4, 9, 16], "a dense ViT keeps its own"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "nowhere", "--output", "x.json"], "There is no model directory nowhere"),
        (["--models", "nowhere", "--output", "x.json", "--limit", "0"], "--limit must lie in 1…"),
        (["--models", "nowhere", "--output", "x.json", "--threads", "0"], "--threads must be at least 1"),
        (["--models", "nowhere", "--output", "x.json", "--visual_tokens", "0"], "Token counts start at 1"),
        (["--models", "nowhere", "--output", "x.json", "--visual_tokens", "4 nine"], "Token counts are written 16"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
