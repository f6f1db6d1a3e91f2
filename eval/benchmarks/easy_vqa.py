"""easy-VQA: 9,673 questions about 1,000 test images of one coloured shape. Exact match, by kind of question.

The official questions.json, with [question, answer, image id] entries, holds questions and annotations. The default of
all paths is the test split of the installed package `easy-vqa`.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from eval.intervals import mean_score, mean_scores_by
from eval.scoring.floors import constant_floor, most_frequent
from eval.scoring.protocol import Benchmark, Mark, Predictions, Question, Scores
from sparse_vlm.data import easy_vqa
from sparse_vlm.errors import UserError

PROTOCOL = (
    "easy-VQA, the plain question, exact match (case, white space and a final full stop do not "
    "count); 95% intervals by bootstrap over images"
)


def load_questions(file: Path | None, images: Path | None) -> list[Question]:
    """Load the questions of `file` about images in `images`; by default the package's test split."""
    folder = images or easy_vqa.split_folder("test") / "images"
    return [
        Question(
            question.id,
            easy_vqa.prompt(question.text),
            easy_vqa.image_path(folder, question.image_id),
            question.kind,
        )
        for question in _read(file)
    ]


def _read(file: Path | None) -> list[easy_vqa.VqaQuestion]:
    return easy_vqa.read_questions(file or easy_vqa.split_folder("test") / "questions.json")


def read_known(questions: Sequence[Question], annotations: Path | None) -> list[easy_vqa.VqaQuestion]:
    """Return the official entry of each question.

    Raises:
        UserError: the annotations belong to other questions.
    """
    annotated = _read(annotations)
    if [(known.id, easy_vqa.prompt(known.text)) for known in annotated] != [(q.id, q.text) for q in questions]:
        raise UserError(
            f"The {len(annotated)} annotations ({annotations or 'the installed test split'}) do not belong to the "
            f"{len(questions)} questions that were asked. Give the same file as --questions."
        )
    return annotated


def exact_match(prediction: str, answer: str) -> bool:
    """Return whether both are the same words, ignoring case, surrounding white space and one final full stop."""
    return _normalize(prediction) == _normalize(answer)


def _normalize(text: str) -> str:
    return text.strip().removesuffix(".").strip().casefold()


def mark(question: Question, text: str, known: easy_vqa.VqaQuestion) -> Mark:
    """Mark an answer by exact match. Empty answers are unreadable."""
    return Mark(question, known, text, text.strip() or None, float(exact_match(text, known.answer)), known.answer)


def aggregate(marks: Sequence[Mark]) -> Scores:
    """Compute the accuracy over all questions and by kind ("yes/no", "colour", "shape")."""
    right, images = [row.credit for row in marks], [row.known.image_id for row in marks]
    by_kind = mean_scores_by("accuracy_by_type", [row.known.kind for row in marks], right, images)
    return {("accuracy",): mean_score(right, images)} | by_kind


def question_only_lookup(training: Iterable[tuple[str, str]], questions: Sequence[str]) -> list[str]:
    """Answer each question with the most frequent training answer to the same words.

    Words that do not occur in training get the most frequent training answer of all.

    Args:
        training: (question, answer) pairs.
        questions: the questions to answer.
    """
    by_text: dict[str, list[str]] = defaultdict(list)
    for text, answer in training:
        by_text[text].append(answer)
    majority = most_frequent(answer for answers in by_text.values() for answer in answers)
    table = {text: most_frequent(answers) for text, answers in by_text.items()}
    return [table.get(question, majority) for question in questions]


def floors(questions: Sequence[Question], known: Sequence[easy_vqa.VqaQuestion]) -> dict[str, Predictions]:
    """Return the floors that need no image, learnt from the training questions and answers.

    "majority" always gives the most frequent training answer, "question_only" the most frequent one to the same words.
    """
    training = easy_vqa.load_questions("train")
    majority = most_frequent(known.answer for known in training)
    pairs = [(easy_vqa.prompt(known.text), known.answer) for known in training]
    lookup = question_only_lookup(pairs, [question.text for question in questions])
    return constant_floor("majority", majority, questions) | {"question_only": lookup}


BENCHMARK = Benchmark(
    protocol=lambda questions: PROTOCOL,
    max_new_tokens=8,
    load_questions=load_questions,
    known=read_known,
    mark=mark,
    aggregate=aggregate,
    floors=floors,
    annotated=True,
)
