"""What VQAv2, TextVQA and VizWiz share: the answers of ten people to each question, and EvalAI's result files."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from eval.intervals import mean_score, mean_scores_by
from eval.metrics import most_frequent
from eval.protocol import Predictions, Question, QuestionId, Scores
from eval.records import Record, field
from eval.vqa_text import simplify_evalai
from sparse_vlm.errors import UserError
from sparse_vlm.files import write_json


def answers_of(record: Record, place: str) -> list[str]:
    """The answers in a record of VQAv2's or VizWiz's annotations; `place` says which file it is from.

    Raises:
        UserError: there are none.
    """
    answers = [field(answer, "answer", str, place) for answer in field(record, "answers", list, place)]
    if not answers:
        raise UserError(f"{place} has a question without answers: {str(record)[:120]}.")
    return answers


def scores_by_type(
    accuracies: Mapping[str, Callable[[str, Sequence[str]], float]],
    questions: Sequence[Question],
    predictions: Predictions,
    known: Sequence[Record],
    place: str,
) -> Scores:
    """Mean accuracies of the predictions over all questions, and by the records' "answer_type".

    Args:
        accuracies: name of the score, e.g. "accuracy" (by type: "accuracy_by_type") -> (prediction, answers) -> 0–1.
        questions, predictions: in the same order.
        known: the questions' records in VQAv2's or VizWiz's annotations.
        place: the file they are from, for errors.
    """
    answers = [answers_of(record, place) for record in known]
    kinds = [field(record, "answer_type", str, place) for record in known]
    images = [question.image_name for question in questions]
    scores: Scores = {}
    for name, accuracy in accuracies.items():
        values = [accuracy(text, ten) for text, ten in zip(predictions, answers, strict=True)]
        scores[name,] = mean_score(values, images)
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
