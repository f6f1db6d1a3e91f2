"""The interface of a benchmark: each module of eval/benchmarks defines a `Benchmark`, listed in its __init__.py."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

QuestionId = int | str


@dataclass(frozen=True)
class EncodedImage:
    """An image inside a benchmark's file: the bytes of an image file, and a name for messages."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Video:
    """A video of a benchmark, or a part of one.

    Attributes:
        path: a video file, or a folder of frames as image files, whose names are in order.
        part: start and end in seconds; None: the whole video.
    """

    path: Path
    part: tuple[float, float] | None = None


@dataclass(frozen=True)
class Question:
    """One question of a benchmark, ready to be asked.

    Attributes:
        id: the official id. Those of TextVQA and MME are the image's, so several questions share one.
        text: the complete prompt of the user's turn, without the image placeholder.
        image: the image or the video; None for a question without either.
        category: the benchmark's own kind of question.
    """

    id: QuestionId
    text: str
    image: Path | EncodedImage | Video | None
    category: str = "default"

    @property
    def image_name(self) -> str:
        """A name that questions about the same image or video share; "" without an image."""
        if isinstance(self.image, EncodedImage):
            return self.image.name
        if isinstance(self.image, Video):
            return str(self.image.path)
        return str(self.image or "")


@dataclass(frozen=True)
class Mark:
    """One answer as the benchmark's scorer reads it.

    Attributes:
        question: the question.
        known: its annotation, from `Benchmark.known`.
        text: the answer, or the judge's reply in its place.
        read: what the scorer reads in the text, e.g. an option's letter; None: unreadable.
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
    """One number of the report.

    Attributes:
        value: the score, 0 to 1 or on the benchmark's own scale.
        count: number of questions behind it.
        interval: 95% confidence limits, low and high.
    """

    value: float
    count: int
    interval: tuple[float, float]


# path of names in report.json's "scores", e.g. ("accuracy_by_type", "shape"), -> number
Scores = dict[tuple[str, ...], Score]
# the answer to each question, in the order of the questions
Predictions = Sequence[str]


def no_floors(questions: Sequence[Question], known: Sequence[Any]) -> dict[str, Predictions]:
    """Return no floors: nothing answers the benchmark without a model."""
    return {}


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        protocol: questions -> the report's line about how they are asked and how answers are scored.
        load_questions: (file, folder of images or videos) -> the questions of the official or LLaVA's file. The file
            may be None if the benchmark has a default; scoring passes no folder.
        known: (questions, annotations) -> the annotation of each question. The questions are all those of the file;
            annotations that do not belong to them are an error.
        mark: (question, answer, its annotation) -> how the answer is read and its credit. If a judge is needed, the
            answer is the judge's reply.
        aggregate: marks -> scores.
        medium: what the questions are about, "image" or "video".
        max_new_tokens: the length at which an answer is cut.
        unreadable: how the scorer counts an answer that it cannot read.
        unit: question -> a key shared by questions that are scored together; None: each question stands alone.
        floors: (questions, their annotations) -> name of each floor -> its predictions, which need no model.
        annotated: the question file also has the answers, so it is the default of the annotations.
        scale: "share" is 0 to 1 and printed in percent, "points" is the benchmark's own scale.
        points: names of scores on their own scale, among shares.
        write_submission: writes the official server's file, given (question file, questions, predictions, output).
        judge_inputs: (questions, predictions, annotations) -> the judge's prompt for each prediction; None: no judge is
            needed for this one. The judge's replies replace the predictions that it was asked about.
        read_reply: a judge's reply -> the text that replaces the prediction.
        judge: "needed": nothing can be scored without the replies. "optional": predictions may stay as they are.
        published: column of eval/published.csv, and scores -> our number in it (None: its part was not asked).
    """

    protocol: Callable[[Sequence[Question]], str]
    load_questions: Callable[[Path | None, Path | None], list[Question]]
    known: Callable[[Sequence[Question], Path | None], Sequence[Any]]
    mark: Callable[[Question, str, Any], Mark]
    aggregate: Callable[[Sequence[Mark]], Scores]
    medium: Literal["image", "video"] = "image"
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
        """Score answers to all questions. If a judge is needed, `predictions` are its replies."""
        known = self.known(questions, annotations)
        return self.aggregate([self.mark(*answered) for answered in zip(questions, predictions, known, strict=True)])
