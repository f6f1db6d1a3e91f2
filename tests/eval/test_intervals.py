"""Bootstrap and Wilson intervals against known values."""

import numpy as np
import pytest

from eval.intervals import (
    bootstrap_interval,
    bootstrap_sums,
    mean_score,
    mean_scores_by,
    ratio_interval,
    wilson_interval,
)


def test_bootstrap_of_single_questions_agrees_with_the_normal_approximation() -> None:
    values = [1.0] * 700 + [0.0] * 300
    low, high = bootstrap_interval(values, range(1000))
    half = 1.96 * np.sqrt(0.7 * 0.3 / 1000)
    assert (low, high) == pytest.approx((0.7 - half, 0.7 + half), abs=0.004)
    assert bootstrap_interval(values, range(1000)) == (low, high)  # seeded
    assert bootstrap_interval(values, range(1000), seed=1) != (low, high)


def test_bootstrap_draws_groups_not_questions() -> None:
    """Ten questions that share an image are one draw, so the interval is √10 times wider."""
    values = [1.0] * 700 + [0.0] * 300
    low, high = bootstrap_interval(values, [i // 10 for i in range(1000)])
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.7 * 0.3 / 100), rel=0.1)


def test_bootstrap_weights_questions_of_uneven_groups_equally() -> None:
    low, high = bootstrap_interval([1, 1, 1, 0], ["a", "a", "a", "b"])
    assert (low, high) == (0.0, 1.0)
    assert bootstrap_interval([1, 1], ["a", "b"]) == (1.0, 1.0)


def test_columns_are_drawn_together() -> None:
    sums = bootstrap_sums([(1, 2), (10, 20), (100, 200)], ["x", "y", "x"])
    assert sums.shape == (2000, 2)
    assert np.array_equal(sums[:, 1], 2 * sums[:, 0])
    assert set(sums[:, 0]) == {20, 111, 202}


def test_means_by_kind() -> None:
    scores = mean_scores_by("by", ["b", "a", "b"], [1, 0, 0], ["x", "y", "z"])
    assert {path: (score.value, score.count) for path, score in scores.items()} == {
        ("by", "a"): (0, 1),
        ("by", "b"): (0.5, 2),
    }
    assert mean_score([0.3, 0.9], [1, 2]).value == pytest.approx(0.6)


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


def test_the_interval_of_a_ratio_is_paired() -> None:
    """A constant ratio has no width; unpaired draws of the same values would."""
    below = [float(index % 5 + 1) for index in range(50)]
    assert ratio_interval([2 * value for value in below], below) == (2.0, 2.0)
    low, high = ratio_interval([2 * value for value in below[::-1]], below) or (0.0, 0.0)
    assert low < 1.9 < 2.1 < high
    assert ratio_interval([1.0, 1.0], [0.0, 1.0]) is None
