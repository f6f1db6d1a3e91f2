"""Metrics against values worked out by hand or published."""

import numpy as np
import pytest

from eval.metrics import bootstrap_interval, exact_match, most_frequent, question_only_lookup, wilson_interval


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
    assert exact_match(prediction, answer) is expected


def test_most_frequent_breaks_ties_by_the_alphabet() -> None:
    assert most_frequent(["b", "a", "c", "b", "c"]) == "b"
    assert most_frequent(["c", "b"]) == "b"


def test_question_only_lookup() -> None:
    training = [("q1", "yes"), ("q1", "yes"), ("q1", "no"), ("q2", "no"), ("q2", "no"), ("q3", "no")]
    assert question_only_lookup(training, ["q1", "q3", "unseen", "q1"]) == ["yes", "no", "no", "yes"]


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, Statistics in Medicine 17, table I
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0000),
    ],
)
def test_wilson_interval_gives_published_values(successes: int, total: int, low: float, high: float) -> None:
    assert wilson_interval(successes, total) == pytest.approx((low, high), abs=5e-5)


def test_bootstrap_of_single_questions_agrees_with_the_normal_approximation() -> None:
    values = [1.0] * 700 + [0.0] * 300
    low, high = bootstrap_interval(values, range(1000))
    half = 1.96 * np.sqrt(0.7 * 0.3 / 1000)
    assert (low, high) == pytest.approx((0.7 - half, 0.7 + half), abs=0.004)
    assert bootstrap_interval(values, range(1000)) == (low, high)  # seeded


def test_bootstrap_draws_groups_not_questions() -> None:
    """Ten questions that share an image are one draw: the interval is √10 wider, not the same."""
    values = [1.0] * 700 + [0.0] * 300
    low, high = bootstrap_interval(values, [i // 10 for i in range(1000)])
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.7 * 0.3 / 100), rel=0.1)


def test_bootstrap_weighs_questions_of_uneven_groups_alike() -> None:
    low, high = bootstrap_interval([1, 1, 1, 0], ["a", "a", "a", "b"])
    assert (low, high) == (0.0, 1.0)
    assert bootstrap_interval([1, 1], ["a", "b"]) == (1.0, 1.0)
