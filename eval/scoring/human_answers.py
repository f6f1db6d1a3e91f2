"""Ten human answers to each question (VQAv2, TextVQA, VizWiz): accuracies, scores, and EvalAI's result files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.intervals import mean_score, mean_scores_by
from eval.scoring.floors import most_frequent_answer_floor
from eval.scoring.protocol import Mark, Predictions, Question, QuestionId, Scores
from eval.scoring.records import Record, field
from eval.scoring.vqa_text import simplify_evalai
from sparse_vlm.errors import UserError
from sparse_vlm.files import write_json


@dataclass(frozen=True)
class TenAnswers:
    """People's answers to a question, and their type, e.g. "yes/no" (None: the files have no types)."""

    answers: Sequence[str]
    kind: str | None = None


def read_ten_answers(records: Sequence[Record], place: str) -> list[TenAnswers]:
    """Read the answers in records of VQAv2's or VizWiz's annotations.

    Args:
        records: the record of each question.
        place: the file, for errors.

    Raises:
        UserError: damaged record.
    """
    return [TenAnswers(_answers(record, place), field(record, "answer_type", str, place)) for record in records]


def _answers(record: Record, place: str) -> list[str]:
    answers = [field(answer, "answer", str, place) for answer in field(record, "answers", list, place)]
    if not answers:
        raise UserError(f"{place} has a question without answers: {str(record)[:120]}.")
    return answers


def agreement(prediction: str, answers: Sequence[str]) -> float:
    """Compute the VQA challenge's accuracy of an answer, 0 to 1, comparing letter by letter.

    An answer counts a third for each annotator who gave it, at most 1, averaged over leaving one annotator out.
    """
    given = list(answers).count(prediction)
    return sum(min(3, given - (answer == prediction)) for answer in answers) / (3 * len(answers))


def evalai_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Compute the accuracy of EvalAI's scorer (TextVQA; VizWiz in lmms-eval): `agreement` in EvalAI's form."""
    return agreement(simplify_evalai(prediction), [simplify_evalai(answer) for answer in answers])


def mark_by(accuracy: Callable[[str, Sequence[str]], float]) -> Callable[[Question, str, TenAnswers], Mark]:
    """Build `Benchmark.mark` from an accuracy; an answer is unreadable if nothing is left of it in EvalAI's form."""

    def mark(question: Question, text: str, known: TenAnswers) -> Mark:
        read = simplify_evalai(text).strip() or None
        return Mark(question, known, text, read, accuracy(text, known.answers), list(known.answers))

    return mark


def mean_accuracies(**accuracies: Callable[[str, Sequence[str]], float]) -> Callable[[Sequence[Mark]], Scores]:
    """Build `Benchmark.aggregate`: mean accuracies over all questions, and by type where the annotations have types.

    Args:
        accuracies: name of the score, e.g. "accuracy" (by type: "accuracy_by_type") = (prediction, answers) -> 0 to 1.
    """

    def aggregate(marks: Sequence[Mark]) -> Scores:
        kinds = [row.known.kind for row in marks]
        images = [row.question.image_name for row in marks]
        scores: Scores = {}
        for name, accuracy in accuracies.items():
            values = [accuracy(row.text, row.known.answers) for row in marks]
            scores[name,] = mean_score(values, images)
            if None not in kinds:
                scores |= mean_scores_by(f"{name}_by_type", kinds, values, images)
        return scores

    return aggregate


def floors(questions: Sequence[Question], known: Sequence[TenAnswers]) -> dict[str, Predictions]:
    """Return the floor that always gives the answer that people gave most often to these questions."""
    return most_frequent_answer_floor((answer for row in known for answer in row.answers), questions)


def write_evalai(key: str, ids: Sequence[QuestionId], predictions: Predictions, output: Path) -> None:
    """Write EvalAI's result file: a list of {`key`: id, "answer"}, with the answers in the form that LLaVA submits."""
    answers = zip(ids, predictions, strict=True)
    write_json(output, [{key: id_, "answer": simplify_evalai(text)} for id_, text in answers])
