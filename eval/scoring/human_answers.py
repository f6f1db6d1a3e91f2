"""What VQAv2, TextVQA and VizWiz share: the answers of ten people to each question, and EvalAI's result files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.intervals import mean_score, mean_scores_by
from eval.scoring.metrics import most_frequent
from eval.scoring.protocol import Mark, Predictions, Question, QuestionId, Scores
from eval.scoring.records import Record, field
from eval.scoring.vqa_text import simplify_evalai
from sparse_vlm.errors import UserError
from sparse_vlm.files import write_json


@dataclass(frozen=True)
class TenAnswers:
    """What people answered to a question, and of what type that is, e.g. "yes/no"; None: the files do not say."""

    answers: Sequence[str]
    kind: str | None = None


def read_ten_answers(records: Sequence[Record], place: str) -> list[TenAnswers]:
    """Records of VQAv2's or VizWiz's annotations; `place` says which file they are from.

    Raises:
        UserError: one is damaged.
    """
    return [TenAnswers(answers_of(record, place), field(record, "answer_type", str, place)) for record in records]


def answers_of(record: Record, place: str) -> list[str]:
    """The answers in a record of VQAv2's or VizWiz's annotations; `place` says which file it is from.

    Raises:
        UserError: there are none.
    """
    answers = [field(answer, "answer", str, place) for answer in field(record, "answers", list, place)]
    if not answers:
        raise UserError(f"{place} has a question without answers: {str(record)[:120]}.")
    return answers


def mark_by(accuracy: Callable[[str, Sequence[str]], float]) -> Callable[[Question, str, TenAnswers], Mark]:
    """How `Benchmark.mark` reads an answer: worth what `accuracy` says; unreadable where nothing is left of it."""

    def mark(question: Question, text: str, known: TenAnswers) -> Mark:
        read = simplify_evalai(text).strip() or None
        return Mark(question, known, text, read, accuracy(text, known.answers), list(known.answers))

    return mark


def scores_by_type(accuracies: Mapping[str, Callable[[str, Sequence[str]], float]], marks: Sequence[Mark]) -> Scores:
    """Mean accuracies over all questions, and by the type of the answer where the annotations have it.

    Args:
        accuracies: name of the score, e.g. "accuracy" (by type: "accuracy_by_type") -> (prediction, answers) -> 0–1.
        marks: whose `known` are `TenAnswers`.
    """
    kinds = [row.known.kind for row in marks]
    images = [row.question.image_name for row in marks]
    scores: Scores = {}
    for name, accuracy in accuracies.items():
        values = [accuracy(row.text, row.known.answers) for row in marks]
        scores[name,] = mean_score(values, images)
        if None not in kinds:
            scores |= mean_scores_by(f"{name}_by_type", kinds, values, images)
    return scores


def most_frequent_floor(answers: Sequence[Sequence[str]]) -> dict[str, Predictions]:
    """What is answered most often to these very questions, as the answer to each of them."""
    answer = most_frequent(text for ten in answers for text in ten)
    return {"most frequent answer": [answer] * len(answers)}


def write_evalai(key: str, ids: Sequence[QuestionId], predictions: Predictions, output: Path) -> None:
    """EvalAI's result file: a list of {`key`: id, "answer"}, the answers in the form that LLaVA submits."""
    answers = zip(ids, predictions, strict=True)
    write_json(output, [{key: id_, "answer": simplify_evalai(text)} for id_, text in answers])
