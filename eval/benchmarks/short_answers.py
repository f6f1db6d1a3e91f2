"""Questions of your own with short answers: LLaVA's question file with an "answer" in each line. Exact match.

{"question_id": 7, "image": "cat.jpg", "text": "is there a cat?", "category": "yes/no", "answer": "yes"}
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from eval.benchmarks.easy_vqa import exact_match
from eval.intervals import mean_score, mean_scores_by
from eval.scoring.floors import most_frequent
from eval.scoring.llava_format import read_llava_questions
from eval.scoring.protocol import Benchmark, Mark, Predictions, Question, Scores
from eval.scoring.records import align, field, question_id, read_lines, require, require_unique

WHAT = 'LLaVA\'s .jsonl with an "answer" in each line'
PROTOCOL = (
    "questions of a LLaVA file as they are, exact match (case, white space and a final full stop do not count); 95% "
    "intervals by bootstrap over images"
)


def load_questions(file: Path | None, images: Path | None) -> list[Question]:
    """Load the questions of `file` about images in `images`.

    Raises:
        UserError: no file, a malformed line, or two questions with the same id.
    """
    path = require(file, "--questions", WHAT)
    questions = read_llava_questions(path, images)
    require_unique(path, [question.id for question in questions], "with the id {!r}", "Number them differently")
    return questions


def read_known(questions: Sequence[Question], annotations: Path | None) -> list[str]:
    """Return the right answer to each question."""
    path = require(annotations, "--annotations", WHAT)
    answers = {
        str(question_id(record, place)): field(record, "answer", str, place) for place, record in read_lines(path)
    }
    return align(questions, [str(question.id) for question in questions], answers, path)


def mark(question: Question, text: str, known: str) -> Mark:
    """Mark an answer by exact match. Empty answers are unreadable."""
    return Mark(question, known, text, text.strip() or None, float(exact_match(text, known)), known)


def aggregate(marks: Sequence[Mark]) -> Scores:
    """Compute the accuracy over all questions and by category."""
    right, images = [row.credit for row in marks], [_group(row.question) for row in marks]
    by_kind = mean_scores_by("accuracy_by_type", [row.question.category for row in marks], right, images)
    return {("accuracy",): mean_score(right, images)} | by_kind


def _group(question: Question) -> str:
    """Return the image of a question, or the question itself if it has none: it stands alone."""
    return question.image_name or f"question {question.id}"


def floors(questions: Sequence[Question], known: Sequence[str]) -> dict[str, Predictions]:
    """Return the floor that always gives the most frequent right answer of the question's category."""
    answers: dict[str, list[str]] = defaultdict(list)
    for question, answer in zip(questions, known, strict=True):
        answers[question.category].append(answer)
    frequent = {category: most_frequent(found) for category, found in answers.items()}
    return {"most frequent answer": [frequent[question.category] for question in questions]}


BENCHMARK = Benchmark(
    protocol=lambda questions: PROTOCOL,
    max_new_tokens=16,
    load_questions=load_questions,
    known=read_known,
    mark=mark,
    aggregate=aggregate,
    floors=floors,
    annotated=True,
)
