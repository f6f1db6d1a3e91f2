"""Questions of several categories, each category with its own label file, as in POPE and MME."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from eval.scoring.protocol import Question
from sparse_vlm.errors import UserError

T = TypeVar("T")
Key = tuple[str, str]  # image and words: they identify a question within its category


def read_by_category(
    questions: Sequence[Question], categories: Sequence[str], read: Callable[[Sequence[Question], str], Sequence[T]]
) -> list[T]:
    """Return the label of each question.

    Args:
        questions: all questions, in any order.
        categories: at least the categories that occur.
        read: (questions of one category, category) -> the label of each.
    """
    known: dict[int, T] = {}
    for category in categories:
        members = [index for index, question in enumerate(questions) if question.category == category]
        if members:
            known |= zip(members, read([questions[index] for index in members], category), strict=True)
    return [known[index] for index in range(len(questions))]


def missing_label_file(name: str, folder: Path, questions: Sequence[Question], category: str) -> UserError:
    """Build the error for a category without a label file."""
    return UserError(f"{folder} has no {name}, which the {len(questions)} questions of {category!r} need.")


def match_labels(
    asked: Sequence[Key], labelled: Sequence[tuple[Key, T]], path: Path, category: str, hint: str = ""
) -> list[T]:
    """Return the label of each question. A question that occurs several times takes its labels in order.

    Args:
        asked: the questions of one category.
        labelled: the questions of its label file, with their labels.
        path: the label file, for the error.
        category: for the error.
        hint: a sentence to end the error with.

    Raises:
        UserError: the label file belongs to other questions.
    """
    labels: dict[Key, list[T]] = defaultdict(list)
    for key, label in labelled:
        labels[key].append(label)
    unknown = [key for key in asked if key not in labels]
    if unknown or sorted(asked) != sorted(key for key, _ in labelled):
        example = f", e.g. {unknown[0][1]!r} about {unknown[0][0]}" if unknown else ""
        raise UserError(
            f"{path} ({len(labelled)} questions) does not belong to the {len(asked)} questions of {category!r}: "
            f"{len(unknown)} of them are not in it{example}.{hint and ' ' + hint}"
        )
    return [labels[key].pop(0) for key in asked]
