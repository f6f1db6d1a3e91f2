"""Floors: predictions that need no model, to compare a model's scores with."""

from collections.abc import Iterable, Sequence
from statistics import multimode

from eval.scoring.protocol import Predictions, Question


def most_frequent(answers: Iterable[str]) -> str:
    """Return the most frequent answer; among equally frequent ones, the first in alphabetical order."""
    return min(multimode(answers))


def constant_floor(name: str, answer: str, questions: Sequence[Question]) -> dict[str, Predictions]:
    """Return a floor that gives one answer to every question."""
    return {name: [answer] * len(questions)}


def most_frequent_letter_floor(letters: Iterable[str], questions: Sequence[Question]) -> dict[str, Predictions]:
    """Return a floor that always gives the most frequent of the right letters, named e.g. "always B"."""
    letter = most_frequent(letters)
    return constant_floor(f"always {letter}", letter, questions)


def most_frequent_answer_floor(answers: Iterable[str], questions: Sequence[Question]) -> dict[str, Predictions]:
    """Return a floor that always gives the most frequent of the right answers."""
    return constant_floor("most frequent answer", most_frequent(answers), questions)
