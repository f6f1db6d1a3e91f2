"""Grades in judges' replies of many forms."""

import pytest

from eval.scoring.judge_replies import read_grade, read_letter, read_two_grades


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("0.5", 0.5),
        ("1.0 ", 1),
        ("0.5\n\nBecause one of two elements is there.", 0.5),
        ("**0.5**", 0.5),
        ("Correctness: 0.5", 0.5),
        ("**Correctness:** 0.5", 0.5),
        ("The correctness score is 0.7.", 0.7),
        ("Correctness score for the prediction: 0.3\n\n2 of 7 elements are there.", 0.3),
        ("I would give a score of **0.4** here.", 0.4),
        ("`.5`", 0.5),
        ("0.5/1.0", 0.5),
        ("0.9 out of 1", 0.9),
        ("1. The first element is there.\n2. The second is not.\nScore: 0.5", 0.5),
        ("The prediction is totally right: 1", 1),
        ("", None),
        ("good", None),
        ("1.5", None),
        ("-0.1", None),
        ("nan", None),
        ("50%", None),
        ("7/10", None),
        ("1/2 of the elements", None),
        ("Score: 0.5 or perhaps score: 0.6", None),
        ("It could be 0.2, or 0.3.", None),
    ],
)
def test_a_grade(reply: str, grade: float | None) -> None:
    assert read_grade(reply) == grade


@pytest.mark.parametrize(
    ("reply", "grades"),
    [
        ("8 6\nBecause", (8, 6)),
        ("10, 3", (10, 3)),
        ("**8 6**\n\nBecause 9 is too much", (8, 6)),
        ("\n8.5 7", (8.5, 7)),
        ("Scores: 8, 6", (8, 6)),
        ("8/10 6/10", (8, 6)),
        ("Assistant 1: 8\nAssistant 2: 6\nBecause", (8, 6)),
        ("8", None),
        ("eight 6", None),
        ("8 6 5", None),
        ("I think that 8 is fair, and 6", None),
        ("-8 6", None),
    ],
)
def test_two_grades(reply: str, grades: tuple[float, float] | None) -> None:
    assert read_two_grades(reply) == grades


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        ("B", "B"),
        ("**B**\n\nBecause the answer means a cat, which is option B and nothing else.", "B"),
        ("Letter: C.\nA long explanation follows", "C"),
        ("The answer is (A)", "A"),
        ("Z\nNone of them.", "Z"),
        ("A cat", "A cat"),
        ("a", "a"),
        ("", ""),
    ],
)
def test_a_letter(reply: str, read: str) -> None:
    assert read_letter(reply) == read
