"""95% confidence intervals of scores: bootstrap over whole images, and Wilson's interval.

Questions about the same image tend to be right or wrong together, so single questions are not independent draws.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval.scoring.protocol import Score, Scores

RESAMPLES = 2000
Z_95 = 1.959963984540054  # the normal distribution's 97.5% quantile
Groups = Sequence[int | str]  # the group of each question, usually its image


def bootstrap_sums(columns: ArrayLike, groups: Groups, seed: int = 0) -> NDArray[np.float64]:
    """Sum columns over random draws of whole groups with replacement.

    Args:
        columns: float[questions, k], the values to sum.
        groups: the group of each question.
        seed: seed of the draws.

    Returns:
        float[2000, k], the k sums of each draw.
    """
    values = np.asarray(columns, dtype=np.float64)
    member_of, count = _members(groups)
    sums = np.stack([np.bincount(member_of, weights=column, minlength=count) for column in values.T], axis=1)
    return np.stack([drawn @ sums for drawn in _draws(count, seed, RESAMPLES)])


def bootstrap_weights(groups: Groups, seed: int = 0) -> Iterator[NDArray[np.float64]]:
    """Draw whole groups 2000 times and yield the number of occurrences of each question, float[questions].

    For statistics that are not sums.

    Args:
        groups: the group of each question.
        seed: seed of the draws.
    """
    member_of, count = _members(groups)
    return (drawn[member_of].astype(np.float64) for drawn in _draws(count, seed, RESAMPLES))


def _members(groups: Groups) -> tuple[NDArray[np.int64], int]:
    """Return the number of each question's group, and the number of groups."""
    _, member_of = np.unique(np.asarray(groups), return_inverse=True)
    return member_of, int(member_of.max()) + 1


@lru_cache(maxsize=16)  # all scores and floors of a report have the same groups
def _draws(count: int, seed: int, resamples: int) -> NDArray[np.uint8]:
    """Return uint8[resamples, count], how often each of `count` groups is drawn."""
    generator = np.random.default_rng(seed)
    draws = np.empty((resamples, count), np.uint8)
    for row in draws:
        row[:] = np.bincount(generator.integers(count, size=count), minlength=count)
    return draws


def middle_95(draws: ArrayLike) -> tuple[float, float]:
    """Return the 2.5% and 97.5% quantiles."""
    low, high = np.quantile(np.asarray(draws), [0.025, 0.975])
    return float(low), float(high)


def bootstrap_interval(values: Sequence[float], groups: Groups, seed: int = 0) -> tuple[float, float]:
    """Compute the 95% percentile bootstrap interval of the mean. If all values are equal, it has width 0.

    Args:
        values: the score of each question.
        groups: the group of each question.
        seed: seed of the draws.
    """
    sums = bootstrap_sums(np.stack([values, np.ones(len(values))], axis=1), groups, seed)
    return middle_95(sums[:, 0] / sums[:, 1])


def ratio_interval(above: Sequence[float], below: Sequence[float], seed: int = 0) -> tuple[float, float] | None:
    """Compute the 95% percentile bootstrap interval of sum(above) / sum(below) over the same independent trials.

    Each draw takes both values of a trial, so what makes a trial easy or hard for both cancels out.

    Args:
        above, below: two values of each trial, which are at least 0.
        seed: seed of the draws.

    Returns:
        None if `below` sums to 0 in some draw, where the ratio is undefined.
    """
    sums = bootstrap_sums(np.stack([above, below], axis=1), range(len(above)), seed)
    return middle_95(sums[:, 0] / sums[:, 1]) if sums[:, 1].all() else None


def mean_score(values: Sequence[float], groups: Groups) -> Score:
    """Compute the mean of the questions' scores with its bootstrap interval."""
    return Score(sum(values) / len(values), len(values), bootstrap_interval(values, groups))


def mean_scores_by(name: str, kinds: Sequence[str], values: Sequence[float], groups: Groups) -> Scores:
    """Compute the mean for each kind of question, in alphabetical order, named (`name`, kind)."""
    scores: Scores = {}
    for kind in sorted(set(kinds)):
        members = [index for index, other in enumerate(kinds) if other == kind]
        scores[name, kind] = mean_score([values[i] for i in members], [groups[i] for i in members])
    return scores


def wilson_interval(successes: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """Compute Wilson's score interval of a proportion of independent trials.

    Args:
        successes: number of successes, 0 to total.
        total: number of trials, at least 1.
        z: quantile of the normal distribution; the default gives 95%.

    Returns:
        (low, high) in [0, 1]; of positive width even at 0 and at `total` successes.
    """
    share, square = successes / total, z * z / total
    centre = (share + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(share * (1 - share) / total + square / (4 * total))
    return max(0.0, centre - half), min(1.0, centre + half)
