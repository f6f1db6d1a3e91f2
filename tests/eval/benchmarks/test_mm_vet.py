"""MM-Vet: the judge's prompts and replies, and all steps of `eval.score`."""

import json
from pathlib import Path

import pytest

from eval.benchmarks import mm_vet
from eval.score import main
from eval.scoring.protocol import Question
from sparse_vlm.errors import UserError
from tests.eval.benchmarks.anchors import write_json, write_lines

MM_VET = {
    "v1_0": {"imagename": "v1_0.png", "question": "What is x?", "answer": "-1<AND>-5", "capability": ["ocr", "math"]},
    "v1_1": {"imagename": "v1_1.png", "question": "What is d?", "answer": "1.25<OR>5/4", "capability": ["math"]},
}


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    return write_json(tmp_path / "mm-vet.json", MM_VET)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """The same questions in LLaVA's format."""
    lines = [{"question_id": i, "image": f"v1_{i}.png", "text": MM_VET[f"v1_{i}"]["question"]} for i in range(2)]
    return write_lines(tmp_path / "llava-mm-vet.jsonl", lines)


def test_from_answers_to_scores(
    tmp_path: Path, annotations: Path, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The judge is any program that reads one file and writes another; here it is this test."""
    answers = write_lines(tmp_path / "a.jsonl", [{"question_id": i, "text": f"x = {i}"} for i in range(2)])
    common = ["mm_vet", "--questions", str(questions), "--answers", str(answers), "--annotations", str(annotations)]
    assert main(common) == 2
    assert "--judge_inputs FILE" in capsys.readouterr().err
    assert main([*common, "--judge_inputs", str(tmp_path / "judge.jsonl")]) == 0
    asked = [json.loads(line) for line in (tmp_path / "judge.jsonl").read_text().splitlines()]
    assert asked[0]["text"].startswith("Compare the ground truth and prediction from AI models")
    assert asked[0]["text"].endswith("| 1.0\n\nWhat is x? | -1 <AND> -5 | x = 0 | ")
    replies = write_lines(
        tmp_path / "replies.jsonl",
        [
            {"question_id": line["question_id"], "text": "0.5" if "x?" in line["text"][-40:] else "1.0 "}
            for line in asked
        ],
    )
    output = tmp_path / "report.json"
    assert main([*common, "--judgements", str(replies), "--output", str(output)]) == 0
    scores = json.loads(output.read_text())["scores"]
    assert scores == {"total": 0.75, "by_ability": {"math": 0.75, "ocr": 0.5}}
    assert main([*common, "--judgements", str(replies), "--no_image_answers", str(answers)]) == 2
    assert "score them alone" in capsys.readouterr().err


LLAVAS = [
    {"image": "v1_0.png", "text": "What is x in the equation?", "category": "conv", "question_id": 0},
    {"image": "v1_1.png", "text": "What is d in the equation?", "category": "conv", "question_id": 1},
]


def test_official_and_llavas_files(annotations: Path, tmp_path: Path) -> None:
    llavas = mm_vet.load_questions(write_lines(tmp_path / "llava-mm-vet.jsonl", LLAVAS), Path("images"))
    assert llavas[0] == Question(0, "What is x in the equation?", Path("images/v1_0.png"), "conv")
    official = mm_vet.load_questions(annotations, Path("images"))
    assert official[1] == Question("v1_1", "What is d?", Path("images/v1_1.png"))
    mm_vet.write_submission(None, llavas[:2], ["a", "b"], tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text()) == {"v1_0": "a", "v1_1": "b"}


@pytest.mark.parametrize("reply", ["", "good", "1.5", "-0.1", "nan"])
def test_errors_name_unreadable_replies(annotations: Path, reply: str) -> None:
    asked = mm_vet.load_questions(annotations, None)
    with pytest.raises(UserError, match="reply to question id 'v1_1' has no clear grade"):
        mm_vet.BENCHMARK.score(asked, ["1.0", reply], annotations)
