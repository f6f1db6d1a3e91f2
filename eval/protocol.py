"""What a benchmark is: one module with the names below, listed in eval/benchmarks.py."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

QuestionId = int | str


@dataclass(frozen=True)
class Question:
    """One question of a benchmark, ready to be asked.

    Attributes:
        id: unique in the benchmark, as in its official file.
        text: the whole prompt of the user's turn, without the image placeholder.
        image: the image's file, or None for a question about no image.
        category: the benchmark's own kind of question.
    """

    id: QuestionId
    text: str
    image: Path | None
    category: str = "default"


@dataclass(frozen=True)
class Score:
    """A number of the report.

    Attributes:
        value: the score, 0 to 1 or on the benchmark's own scale.
        count: the questions behind it.
        interval: 95% confidence limits, low and high.
    """

    value: float
    count: int
    interval: tuple[float, float]


# path of names in report.json's "scores", e.g. ("accuracy_by_type", "shape"), -> number
Scores = dict[tuple[str, ...], Score]
# question id -> what was answered
Predictions = Mapping[QuestionId, str]


class Benchmark(Protocol):
    """The names that a benchmark's module defines."""

    @property
    def PROTOCOL(self) -> str:  # noqa: N802
        """One line: what is asked how, and how an answer counts."""

    @property
    def MAX_NEW_TOKENS(self) -> int:  # noqa: N802
        """Where an answer that does not end by itself is cut."""

    def load_questions(self, file: Path | None, images: Path | None) -> list[Question]:
        """The questions of the official `file` about the pictures in the folder `images`; None: the benchmark's
        own default, or a UserError where there is none."""

    def score(self, questions: Sequence[Question], predictions: Predictions, annotations: Path | None) -> Scores:
        """Scores complete predictions against the official annotations; None: the default, as above."""

    def floors(self, questions: Sequence[Question], annotations: Path | None) -> dict[str, Predictions]:
        """What answers without any model: name of the floor -> its predictions for all questions."""
