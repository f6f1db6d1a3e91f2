"""SEED-Bench: official and LLaVA's question files, scores, submissions."""

import json
from pathlib import Path

import pytest

from eval.benchmarks import seed_bench
from eval.scoring.protocol import Question
from sparse_vlm.data.instructions import OPTION_LETTER
from sparse_vlm.errors import UserError
from tests.eval.benchmarks.anchors import write_json, write_lines

SEED = {
    "question_type": {"Scene Understanding": 1, "Action Recognition": 10},
    "questions": [
        {
            "question_id": "101669",
            "question": "Where?",
            "data_id": "1_2",
            "data_type": "image",
            "question_type_id": 1,
            "answer": "B",
            **{f"choice_{letter}": f"place {letter}" for letter in "abcd"},
        },
        {"question_id": "v9", "data_id": "9.mp4", "data_type": "video", "question_type_id": 10, "answer": "A"},
    ],
}


def test_seed_bench(tmp_path: Path) -> None:
    official = write_json(tmp_path / "SEED-Bench.json", SEED)
    text = f"Where?\nA. place a\nB. place b\nC. place c\nD. place d\n{OPTION_LETTER}"
    images = seed_bench.load_questions(official, Path("images"))
    assert images == [Question("101669", text, Path("images/1_2"))]
    assert (
        seed_bench.BENCHMARK.score(images, ["B"], official)["accuracy",].value == 1
    )  # all images and no videos: allowed
    lines = [{"question_id": 101669, "image": "a", "text": text}, {"question_id": "v9", "image": "b", "text": "What?"}]
    questions = seed_bench.load_questions(write_lines(tmp_path / "llava.jsonl", lines), None)
    scores = seed_bench.BENCHMARK.score(questions, ["B.", "A"], official)
    assert {path: score.value for path, score in scores.items()} == {
        ("accuracy",): 0.5,
        ("accuracy_by_medium", "image"): 0,  # "B." is not "B" to the official scorer
        ("accuracy_by_medium", "video"): 1,
        ("accuracy_by_type", "Action Recognition"): 1,
        ("accuracy_by_type", "Scene Understanding"): 0,
    }
    seed_bench.write_submission(None, questions, ["B", "A"], tmp_path / "s.jsonl")
    lines_written = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert lines_written == [{"question_id": "101669", "prediction": "B"}, {"question_id": "v9", "prediction": "A"}]
    more = SEED | {"questions": [*SEED["questions"], {"question_id": "5", "data_type": "image"}]}
    assert (
        seed_bench.BENCHMARK.score(questions, ["B", "A"], tmp_path)["accuracy",].value == 1
    )  # the folder of SEED-Bench.json
    with pytest.raises(UserError, match=r"annotates 1 questions that were not asked, e\.g\. '5'"):
        seed_bench.BENCHMARK.score(questions, ["B", "A"], write_json(tmp_path / "more.json", more))
