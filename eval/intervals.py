"""95% confidence intervals of scores, by bootstrap over whole pictures.

Questions about one picture are right or wrong together, so single questions are no independent draws.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval.scoring.protocol import Score, Scores

RESAMPLES = 2000
Z_95 = 1.959963984540054  # the normal distribution's 97.5% quantile
Groups = Sequence[int | str]  # what questions about one picture have in common


def bootstrap_sums(columns: ArrayLike, groups: Groups, seed: int = 0) -> NDArray[np.float64]:
    """Sums over random draws of whole groups with replacement.

    Args:
        columns: float[questions, k], what is summed.
        groups: the group each question belongs to.
        seed: of the draws.

    Returns:
        float[2000, k], the k sums of each draw.
    """
    values = np.asarray(columns, dtype=np.float64)
    member_of, count = _members(groups)
    sums = np.stack([np.bincount(member_of, weights=column, minlength=count) for column in values.T], axis=1)
    return np.stack([drawn @ sums for drawn in _draws(count, seed, RESAMPLES)])


def bootstrap_weights(groups: Groups, seed: int = 0) -> Iterator[NDArray[np.float64]]:
    """For statistics that are no sums: 2000 times float[questions], how often a draw of whole groups has each question.

    Args:
        groups: the group each question belongs to.
        seed: of the draws.
    """
    member_of, count = _members(groups)
    return (drawn[member_of].astype(np.float64) for drawn in _draws(count, seed, RESAMPLES))


def _members(groups: Groups) -> tuple[NDArray[np.int64], int]:
    """Each question's group as a number, and how many groups there are."""
    _, member_of = np.unique(np.asarray(groups), return_inverse=True)
    return member_of, int(member_of.max()) + 1


@lru_cache(maxsize=16)  # a report has the same groups again and again: for each of its scores and floors
def _draws(count: int, seed: int, resamples: int) -> NDArray[np.uint8]:
    """uint8[resamples, count], how often each of `count` groups is drawn."""
    generator = np.random.default_rng(seed)
    draws = np.empty((resamples, count), np.uint8)
    for row in draws:
        row[:] = np.bincount(generator.integers(count, size=count), minlength=count)
    return draws


def middle_95(draws: ArrayLike) -> tuple[float, float]:
    """The 2.5% and 97.5% quantiles."""
    low, high = np.quantile(np.asarray(draws), [0.025, 0.975])
    return float(low), float(high)


def bootstrap_interval(values: Sequence[float], groups: Groups, seed: int = 0) -> tuple[float, float]:
    """95% percentile bootstrap interval of the mean. Where all values are equal it has no width.

    Args:
        values: a score for each question.
        groups: the group each question belongs to.
        seed: of the draws.
    """
    sums = bootstrap_sums(np.stack([values, np.ones(len(values))], axis=1), groups, seed)
    return middle_95(sums[:, 0] / sums[:, 1])


def mean_score(values: Sequence[float], groups: Groups) -> Score:
    """The mean of the questions' scores."""
    return Score(sum(values) / len(values), len(values), bootstrap_interval(values, groups))


def mean_scores_by(name: str, kinds: Sequence[str], values: Sequence[float], groups: Groups) -> Scores:
    """A mean for each kind of question, in alphabetical order, as (`name`, kind)."""
    scores: Scores = {}
    for kind in sorted(set(kinds)):
        members = [index for index, other in enumerate(kinds) if other == kind]
        scores[name, kind] = mean_score([values[i] for i in members], [groups[i] for i in members])
    return scores


def wilson_interval(successes: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a proportion of independent trials.

    Args:
        successes: 0 to total.
        total: at least 1.
        z: quantile of the normal distribution; the default gives 95%.

    Returns:
        (low, high) in [0, 1]; never empty, also at 0 and at `total` successes.
    """
    share, square = successes / total, z * z / total
    centre = (share + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(share * (1 - share) / total + square / (4 * total))
    return max(0.0, centre - half), min(1.0, centre + half)
