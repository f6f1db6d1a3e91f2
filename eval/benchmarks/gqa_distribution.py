"""GQA's "distribution": how far the frequencies of a model's answers are from those of the right ones."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from eval.intervals import Groups, bootstrap_weights, middle_95
from eval.scoring.protocol import Score


def distribution_score(
    groups: Sequence[str], predictions: Sequence[str], answers: Sequence[str], images: Groups
) -> Score:
    """The official scorer's chi-square statistic over 100, lower is better: the sum of (given - right)² / right over a
    group's right answers, averaged over the groups by their number of questions. Its interval leans upwards: a draw's
    frequencies are farther from each other than those of all questions.

    Args:
        groups: what kind of thing each question asks for; answers are compared within a group.
        predictions, answers: what was said to each question, and what is right.
        images: the picture of each question, for the interval.
    """
    cells = {pair: place for place, pair in enumerate(dict.fromkeys(zip(groups, answers, strict=True)))}
    right = np.array([cells[pair] for pair in zip(groups, answers, strict=True)])
    # what is never right in its group counts nowhere, as in the official scorer: it falls into a cell of its own
    said = np.array([cells.get(pair, len(cells)) for pair in zip(groups, predictions, strict=True)])
    names = {name: place for place, name in enumerate(dict.fromkeys(groups))}
    group_of = np.array([names[group] for group, _ in cells])
    draws = [_distance(right, said, group_of, weights) for weights in bootstrap_weights(images)]
    return Score(_distance(right, said, group_of, np.ones(len(right))), len(right), middle_95(draws))


def _distance(
    right: NDArray[np.int64], said: NDArray[np.int64], group_of: NDArray[np.int64], weights: NDArray[np.float64]
) -> float:
    """float; `right` and `said` are int[questions], cells; `group_of` is int[cells]; `weights` float[questions]."""
    expected = np.bincount(right, weights, len(group_of))
    given = np.bincount(said, weights, len(group_of) + 1)[:-1]
    drawn = expected > 0
    squares = np.zeros(len(group_of))
    squares[drawn] = (given[drawn] - expected[drawn]) ** 2 / expected[drawn]
    sizes, sums = np.bincount(group_of, expected), np.bincount(group_of, squares)
    return float(sums @ sizes / sizes.sum() / 100)
