"""The easy-VQA benchmark on the real test split."""

import json
from pathlib import Path

import pytest

from eval.benchmarks import easy_vqa
from eval.scoring.protocol import Question
from sparse_vlm.data import easy_vqa as dataset
from sparse_vlm.errors import UserError


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return easy_vqa.load_questions(None, None)


@pytest.fixture(scope="module")
def truth() -> list[str]:
    return [question.answer for question in dataset.load_questions("test")]


def test_all_test_questions_with_their_images(questions: list[Question]) -> None:
    assert len({question.id for question in questions}) == 9673
    images = {question.image for question in questions}
    assert len(images) == 1000
    assert all(image is not None and image.is_file() for image in images)


@pytest.mark.slow
def test_scores_count_every_question_in_its_kind(questions: list[Question], truth: list[str]) -> None:
    wrong_on_shapes = [
        "square" if question.category == "shape" else answer.upper()
        for question, answer in zip(questions, truth, strict=True)
    ]
    scores = easy_vqa.BENCHMARK.score(questions, wrong_on_shapes, None)
    counts = {path: score.count for path, score in scores.items()}
    assert counts["accuracy_by_type", "yes/no"] == 7136
    assert counts["accuracy",] == 9673 == sum(count for path, count in counts.items() if len(path) == 2)
    assert scores["accuracy_by_type", "shape"].value == 0
    assert scores["accuracy_by_type", "colour"].value == scores["accuracy_by_type", "yes/no"].value == 1
    overall = scores["accuracy",]
    assert overall.value == 1 - counts["accuracy_by_type", "shape"] / 9673
    assert overall.interval[0] < overall.value < overall.interval[1]


@pytest.mark.slow
def test_floors_on_the_real_data(questions: list[Question]) -> None:
    """Expected on 600 questions: majority 37.3%, question-only lookup 67.0%."""
    floors = easy_vqa.floors(questions, easy_vqa.read_known(questions, None))
    values = {
        name: easy_vqa.BENCHMARK.score(questions, floor, None)["accuracy",].value for name, floor in floors.items()
    }
    assert set(floors["majority"]) == {"yes"}
    assert values["majority"] == pytest.approx(0.373, abs=0.02)
    assert values["question_only"] == pytest.approx(0.670, abs=0.02)


def test_annotations_of_other_questions_are_refused(tmp_path: Path, questions: list[Question]) -> None:
    file = tmp_path / "questions.json"
    file.write_text(json.dumps([["is there a circle?", "yes", 0]]))
    with pytest.raises(UserError, match=r"1 annotations .* do not belong to the 9673 questions"):
        easy_vqa.BENCHMARK.score(questions, [], file)


def test_another_question_file_and_image_folder(tmp_path: Path) -> None:
    file = tmp_path / "questions.json"
    file.write_text(json.dumps([["is there a circle?", "yes", 3]]))
    assert easy_vqa.load_questions(file, tmp_path) == [
        Question(0, "is there a circle?", tmp_path / "3.png", "yes/no"),
    ]


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("red", "red", True),
        (" Red.\n", "red", True),
        ("red .", "red", True),
        ("a red one", "red", False),
        ("redred", "red", False),
        ("", "red", False),
        ("red..", "red", False),
        ("no", "not", False),
    ],
)
def test_exact_match(prediction: str, answer: str, expected: bool) -> None:
    assert easy_vqa.exact_match(prediction, answer) is expected


def test_question_only_lookup() -> None:
    training = [("q1", "yes"), ("q1", "yes"), ("q1", "no"), ("q2", "no"), ("q2", "no"), ("q3", "no")]
    assert easy_vqa.question_only_lookup(training, ["q1", "q3", "unseen", "q1"]) == ["yes", "no", "no", "yes"]
