"""Metrics: pure functions of predictions and answers."""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

Z_95 = 1.959963984540054  # the normal distribution's 97.5% quantile


def exact_match(prediction: str, answer: str) -> bool:
    """Whether both are the same words: surrounding white space, one final full stop and case do not count."""
    return _plain(prediction) == _plain(answer)


def _plain(text: str) -> str:
    return text.strip().removesuffix(".").strip().casefold()


def most_frequent(answers: Iterable[str]) -> str:
    """The most frequent answer; of equally frequent ones the first in alphabetical order."""
    counts = Counter(answers)
    return min(counts, key=lambda answer: (-counts[answer], answer))


def question_only_lookup(training: Iterable[tuple[str, str]], questions: Sequence[str]) -> list[str]:
    """Answers by the question's words alone: what was most often answered to the same words in training, and the most
    frequent answer of all for words never seen there.

    Args:
        training: (question, answer) pairs.
        questions: what is asked.

    Returns:
        an answer for each of `questions`.
    """
    by_text: dict[str, list[str]] = defaultdict(list)
    for text, answer in training:
        by_text[text].append(answer)
    majority = most_frequent(answer for answers in by_text.values() for answer in answers)
    table = {text: most_frequent(answers) for text, answers in by_text.items()}
    return [table.get(question, majority) for question in questions]


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


def bootstrap_interval(
    values: Sequence[float], groups: Sequence[Hashable], resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95% percentile bootstrap interval of the mean, drawing whole groups (images) with replacement.

    Questions about one picture are right or wrong together, so single questions are no independent draws. Where all
    values are equal the interval has no width.

    Args:
        values: a score for each question.
        groups: the group each question belongs to.
        resamples: how many draws.
        seed: of the draws.
    """
    _, member_of = np.unique([hash(group) for group in groups], return_inverse=True)
    sums, counts = np.bincount(member_of, weights=values), np.bincount(member_of)
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    for draw in range(resamples):
        drawn = generator.integers(len(sums), size=len(sums))
        means[draw] = sums[drawn].sum() / counts[drawn].sum()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
