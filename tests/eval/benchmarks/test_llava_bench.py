"""LLaVA-Bench: the judge's prompts and its replies."""

from pathlib import Path

import pytest

from eval.benchmarks import llava_bench
from eval.scoring.protocol import Question
from sparse_vlm.errors import UserError
from tests.eval.benchmarks.anchors import write_json, write_lines


@pytest.fixture
def bench(tmp_path: Path) -> list[Question]:
    """LLaVA-Bench with two questions about one image; its official files are in `tmp_path`."""
    lines = [
        {"question_id": 0, "image": "001.jpg", "text": "Where?", "category": "conv"},
        {"question_id": 1, "image": "001.jpg", "text": "Why?", "category": "detail"},
    ]
    write_lines(tmp_path / "context.jsonl", [{"id": "001", "image": "001.jpg", "caption": ["A lake.", "Snow."]}])
    write_lines(tmp_path / "answers_gpt4.jsonl", [{"question_id": i, "text": f"reference {i}"} for i in (1, 0)])
    rules = {f"llava_bench_{name}": {"role": "Assistant", "prompt": f"Rate, {name}."} for name in ("conv", "detail")}
    write_json(tmp_path / "rule.json", rules)
    return llava_bench.load_questions(write_lines(tmp_path / "questions.jsonl", lines), None)


def test_prompts_are_llavas(bench: list[Question], tmp_path: Path) -> None:
    first, _ = llava_bench.judge_inputs(bench, ["In Asia.", "So."], tmp_path)
    assert first == (
        "[Context]\nA lake.\nSnow.\n\n[Question]\nWhere?\n\n[Assistant 1]\nreference 0\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\nIn Asia.\n\n[End of Assistant 2]\n\n[System]\nRate, conv.\n\n"
    )


def test_scores_are_relative_to_gpt4(bench: list[Question]) -> None:
    scores = llava_bench.BENCHMARK.score(bench, ["8 6\nBecause", "10, 3"], None)
    assert {path: score.value for path, score in scores.items()} == {
        ("relative",): 0.5,
        ("relative_by_category", "conv"): 0.75,
        ("relative_by_category", "detail"): 0.3,
    }
    for reply in ("8", "eight 6", "8 6 5"):
        with pytest.raises(UserError, match="question id 1 does not begin with a line of two numbers"):
            llava_bench.BENCHMARK.score(bench, ["8 6", reply], None)
    with pytest.raises(UserError, match="no points at all"):
        llava_bench.BENCHMARK.score(bench, ["0 6", "0 3"], None)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("context.jsonl", '{"image": "002.jpg", "caption": "x"}\n', "has no captions of '001.jpg'"),
        ("answers_gpt4.jsonl", '{"question_id": 0, "text": "x"}\n', "has no annotation for question id 1"),
        ("rule.json", "{}", '"llava_bench_conv" is missing'),
        ("rule.json", None, "Cannot read"),
    ],
)
def test_llava_bench_with_other_files(
    bench: list[Question], tmp_path: Path, name: str, content: str | None, sentence: str
) -> None:
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=sentence):
        llava_bench.judge_inputs(bench, ["", ""], tmp_path)
