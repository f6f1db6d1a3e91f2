"""GQA's "distribution": the distance between the frequencies of a model's answers and of the right ones."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from eval.intervals import Groups, bootstrap_weights, middle_95
from eval.scoring.protocol import Score


def distribution_score(
    groups: Sequence[str], predictions: Sequence[str], answers: Sequence[str], images: Groups
) -> Score:
    """Compute the official scorer's chi-square statistic divided by 100; lower is better.

    It is the sum of (given - right)² / right over the right answers of a group, averaged over groups weighted by their
    number of questions. The interval is biased upwards, because the frequencies in a bootstrap draw differ more from
    each other than those of all questions.

    Args:
        groups: the kind of thing each question asks for; answers are compared within a group.
        predictions, answers: the given and the right answer to each question.
        images: the image of each question, for the interval.
    """
    cells = {pair: place for place, pair in enumerate(dict.fromkeys(zip(groups, answers, strict=True)))}
    right = np.array([cells[pair] for pair in zip(groups, answers, strict=True)])
    # answers that are never right in their group do not count, as in the official scorer: they share an extra cell
    predicted = np.array([cells.get(pair, len(cells)) for pair in zip(groups, predictions, strict=True)])
    names = {name: place for place, name in enumerate(dict.fromkeys(groups))}
    group_of = np.array([names[group] for group, _ in cells])
    draws = [_distance(right, predicted, group_of, weights) for weights in bootstrap_weights(images)]
    return Score(_distance(right, predicted, group_of, np.ones(len(right))), len(right), middle_95(draws))


def _distance(
    right: NDArray[np.int64], predicted: NDArray[np.int64], group_of: NDArray[np.int64], weights: NDArray[np.float64]
) -> float:
    """Compute the statistic of one draw from the cells of each question and the group of each cell."""
    expected = np.bincount(right, weights, len(group_of))
    given = np.bincount(predicted, weights, len(group_of) + 1)[:-1]
    drawn = expected > 0
    squares = np.zeros(len(group_of))
    squares[drawn] = (given[drawn] - expected[drawn]) ** 2 / expected[drawn]
    sizes, sums = np.bincount(group_of, expected), np.bincount(group_of, squares)
    return float(sums @ sizes / sizes.sum() / 100)
