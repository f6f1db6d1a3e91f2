"""What a benchmark is: a module of eval/ with a `Benchmark`, listed in eval/benchmarks/__init__.py."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

QuestionId = int | str


@dataclass(frozen=True)
class EncodedImage:
    """A picture that lies inside a benchmark's file: the bytes of an image file, and a name for messages."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Question:
    """One question of a benchmark, ready to be asked.

    Attributes:
        id: as in its official file. TextVQA's and MME's are those of the picture and do not tell questions apart.
        text: the whole prompt of the user's turn, without the image placeholder.
        image: the picture, or None for a question about no picture.
        category: the benchmark's own kind of question.
    """

    id: QuestionId
    text: str
    image: Path | EncodedImage | None
    category: str = "default"

    @property
    def image_name(self) -> str:
        """What questions about the same picture have in common; "" without a picture."""
        if isinstance(self.image, EncodedImage):
            return self.image.name
        return str(self.image or "")


@dataclass(frozen=True)
class Mark:
    """One answer as the benchmark's scorer reads it.

    Attributes:
        question: what was asked.
        known: its annotation, of `Benchmark.known`.
        text: the answer, or the judge's reply in its place.
        read: what the scorer makes of the text, e.g. an option's letter; None: nothing that it understands.
        credit: 0 (wrong) to 1 (right).
        right: the right answer or answers, for the file of results; None: there are none.
    """

    question: Question
    known: Any
    text: str
    read: str | None
    credit: float
    right: Any = None


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
# what was answered to each question, in the order of the questions
Predictions = Sequence[str]


def no_floors(questions: Sequence[Question], known: Sequence[Any]) -> dict[str, Predictions]:
    """Return no floors: nothing answers the benchmark without a model."""
    return {}


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        protocol: the line of the report that says what is asked how, and how an answer counts.
        load_questions: (file, folder of pictures) -> the questions of the official or LLaVA's file. The file may be
            None where the benchmark has a default; scoring gives no folder.
        known: (questions, annotations) -> the annotation of each question. The questions are all of the file; what does
            not fit them is an error.
        mark: (question, answer, its annotation) -> how the answer is read and what it is worth. Where a judge is
            needed, the answer is its reply.
        aggregate: marks -> scores.
        max_new_tokens: the length at which an answer is cut.
        unreadable: how an answer counts that the scorer cannot read, as its source has it.
        unit: what questions that are scored together have in common; None: each question stands alone.
        floors: (questions, their annotations) -> name of each floor -> its predictions, which need no model.
        annotated: whether the question file has the answers too, so that it is the default of the annotations.
        scale: "share" is 0 to 1 and printed in percent, "points" is the benchmark's own.
        points: names of scores on a scale of their own among shares.
        write_submission: (question file, questions, predictions, output) writes what the official server takes.
        judge_inputs: (questions, predictions, annotations) -> what a judge is asked about each prediction; None: it
            is clear without. The judge's replies take the place of the predictions that it was asked about.
        read_reply: a judge's reply -> what takes the place of the prediction.
        judge: "needed": nothing can be scored without the replies. "optional": what is unclear counts as it stands.
        published: column of eval/published.csv and our number in it; None where its part was not asked.
    """

    protocol: Callable[[Sequence[Question]], str]
    load_questions: Callable[[Path | None, Path | None], list[Question]]
    known: Callable[[Sequence[Question], Path | None], Sequence[Any]]
    mark: Callable[[Question, str, Any], Mark]
    aggregate: Callable[[Sequence[Mark]], Scores]
    max_new_tokens: int = 128
    unreadable: str = "wrong"
    unit: Callable[[Question], Hashable] | None = None
    floors: Callable[[Sequence[Question], Sequence[Any]], dict[str, Predictions]] = no_floors
    annotated: bool = False
    scale: Literal["share", "points"] = "share"
    points: tuple[str, ...] = ()
    write_submission: Callable[[Path | None, Sequence[Question], Predictions, Path], None] | None = None
    judge_inputs: Callable[[Sequence[Question], Predictions, Path | None], Sequence[str | None]] | None = None
    read_reply: Callable[[str], str] = str
    judge: Literal["needed", "optional"] = "needed"
    published: tuple[str, Callable[[Scores], float | None]] | None = None

    def score(self, questions: Sequence[Question], predictions: Predictions, annotations: Path | None) -> Scores:
        """The scores of answers to all questions; where a judge is needed, `predictions` are its replies."""
        known = self.known(questions, annotations)
        return self.aggregate([self.mark(*answered) for answered in zip(questions, predictions, known, strict=True)])
