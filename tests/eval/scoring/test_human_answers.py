"""Accuracies of ten human answers against the official scorers' own results."""

import json

import pytest

from eval.benchmarks.vqav2 import vqa_accuracy
from eval.scoring.human_answers import evalai_accuracy
from tests.eval.benchmarks.anchors import FIXTURES


def test_400_results_of_the_official_scorers() -> None:
    cases = json.loads((FIXTURES / "vqa_accuracy.json").read_text(encoding="utf-8"))
    assert len(cases) == 400
    assert [vqa_accuracy(case["prediction"], case["answers"]) for case in cases] == [case["vqav2"] for case in cases]
    assert [evalai_accuracy(case["prediction"], case["answers"]) for case in cases] == [
        case["textvqa"] for case in cases
    ]
    assert sum(case["vqav2"] != case["textvqa"] for case in cases) == 14


@pytest.mark.parametrize(("given", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_an_answer_counts_by_how_many_annotators_gave_it(given: int, expected: float) -> None:
    answers = ["red"] * given + ["blue"] * (10 - given)
    assert vqa_accuracy("red", answers) == evalai_accuracy("red", answers) == expected
