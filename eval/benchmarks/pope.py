"""POPE: is an object in the COCO image? Absent objects are random, popular or adversarial ones.

The random file has two editions, of 2910 and 3000 questions; LLaVA's question file belongs to the first. The official
scorer pairs answers and labels by position and would silently score the wrong edition, so here every question must be
in its category's label file.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eval.intervals import bootstrap_sums, middle_95
from eval.scoring.floors import constant_floor
from eval.scoring.labels import Key, match_labels, missing_label_file, read_by_category
from eval.scoring.llava_format import image_file
from eval.scoring.protocol import Benchmark, Mark, Predictions, Question, Score, Scores
from eval.scoring.records import Record, field, question_id, read_lines, require
from sparse_vlm.data.instructions import SHORT_ANSWER
from sparse_vlm.errors import UserError

PROTOCOL = (
    "POPE on COCO, asked for a single word or phrase; an answer counts as no if its first sentence "
    'has the word "no" or "not", otherwise as yes; published numbers are F1, averaged over the three categories'
)
FILE_NAME = "coco_pope_{}.json"
CATEGORIES = ("random", "popular", "adversarial")
EDITION = "LLaVA's question file needs the edition with 2910 random questions."


def load_questions(file: Path | None, images: Path | None) -> list[Question]:
    """Load LLaVA's llava_pope_test.jsonl, an official coco_pope_*.json, or a folder with all three of these."""
    what = "LLaVA's llava_pope_test.jsonl, an official coco_pope_*.json, or the folder with all three"
    path = require(file, "--questions", what)
    if not path.is_dir():
        return _questions_in(path, images)
    files = [path / FILE_NAME.format(category) for category in CATEGORIES]
    return [question for each in files for question in _questions_in(each, images)]


def _questions_in(path: Path, images: Path | None) -> list[Question]:
    """Load a question file. The name of an official one contains the category."""
    questions = []
    for place, record in read_lines(path):
        text = field(record, "text", str, place)
        if "category" not in record:
            text = f"{text}\n{SHORT_ANSWER}"
        category = str(record.get("category") or path.stem.removeprefix("coco_pope_"))
        if category not in CATEGORIES:
            raise UserError(f"{place}: the category is {category!r}, expected one of {', '.join(CATEGORIES)}.")
        image = image_file(images, field(record, "image", str, place))
        questions.append(Question(question_id(record, place), text, image, category))
    return questions


def _labels(questions: Sequence[Question], annotations: Path, category: str) -> list[bool]:
    """Return whether yes is the right answer to each question of a category.

    Raises:
        UserError: the category's label file is missing or belongs to other questions.
    """
    path = annotations / FILE_NAME.format(category) if annotations.is_dir() else annotations
    if not path.is_file():
        raise missing_label_file(path.name, annotations, questions, category)
    labelled = [(_key(record, path), _label(record, path)) for _, record in read_lines(path)]
    asked = [(Path(question.image_name).name, question.text.split("\n")[0].strip()) for question in questions]
    return match_labels(asked, labelled, path, category, EDITION)


def _key(record: Record, path: Path) -> Key:
    return field(record, "image", str, str(path)), field(record, "text", str, str(path)).strip()


def _label(record: Record, path: Path) -> bool:
    label = field(record, "label", str, str(path))
    if label not in ("yes", "no"):
        raise UserError(f'{path}: a label is {label!r}, expected "yes" or "no".')
    return label == "yes"


def read_known(questions: Sequence[Question], annotations: Path | None) -> list[bool]:
    """Return whether yes is the right answer to each question."""
    path = require(annotations, "--annotations", "the folder with the official coco_pope_*.json")
    return read_by_category(questions, CATEGORIES, lambda members, category: _labels(members, path, category))


def says_yes(text: str) -> bool:
    """Read an answer as POPE does: no if its first sentence has the word "No", "no" or "not", otherwise yes."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def is_readable(text: str) -> bool:
    """Return whether an answer says yes or no at all, in any spelling; POPE's scorer reads others as yes."""
    return bool(re.search(r"\b(yes|no|not)\b", text, re.IGNORECASE))


def mark(question: Question, text: str, known: bool) -> Mark:
    """Mark an answer as the official scorer reads it. One that says neither yes nor no is unreadable."""
    yes = says_yes(text)
    read = None if yes and not is_readable(text) else "yes" if yes else "no"
    return Mark(question, known, text, read, float(yes == known), "yes" if known else "no")


def aggregate(marks: Sequence[Mark]) -> Scores:
    """Compute accuracy, precision, recall, F1 and the share of yes for each category that was asked."""
    scores: Scores = {}
    for category in CATEGORIES:
        rows = [row for row in marks if row.question.category == category]
        if rows:
            scores |= {(category, name): score for name, score in _scores(rows).items()}
    return scores


def _scores(marks: Sequence[Mark]) -> dict[str, Score]:
    true = np.array([row.known for row in marks])
    yes = np.array([bool(row.credit) for row in marks]) == true
    counts = np.stack([yes & true, yes & ~true, ~yes & true, ~yes & ~true], axis=1)
    draws = [binary_scores(*row) for row in bootstrap_sums(counts, [r.question.image_name for r in marks]).tolist()]
    values = binary_scores(*counts.sum(axis=0).tolist())
    return {name: Score(value, len(marks), middle_95([draw[name] for draw in draws])) for name, value in values.items()}


def binary_scores(true_yes: float, false_yes: float, false_no: float, true_no: float) -> dict[str, float]:
    """Compute POPE's five numbers from the four counts.

    Precision and recall are those of "yes". A ratio whose denominator is 0 is 0.
    """
    total = true_yes + false_yes + false_no + true_no
    precision = _ratio(true_yes, true_yes + false_yes)
    recall = _ratio(true_yes, true_yes + false_no)
    return {
        "accuracy": _ratio(true_yes + true_no, total),
        "precision": precision,
        "recall": recall,
        "f1": _ratio(2 * precision * recall, precision + recall),
        "yes_ratio": _ratio(true_yes + false_yes, total),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def floors(questions: Sequence[Question], known: Sequence[bool]) -> dict[str, Predictions]:
    """Return the floor that answers "Yes" to every question."""
    return constant_floor("always yes", "Yes", questions)


def _mean_f1(scores: Scores) -> float | None:
    """Return the F1 averaged over the three categories, in percent; None unless all were asked."""
    values = [score.value for path, score in scores.items() if path[1] == "f1"]
    return 100 * sum(values) / len(values) if len(values) == len(CATEGORIES) else None


BENCHMARK = Benchmark(
    protocol=lambda questions: PROTOCOL,
    load_questions=load_questions,
    known=read_known,
    mark=mark,
    aggregate=aggregate,
    unreadable='"yes"',
    floors=floors,
    published=("POPE", _mean_f1),
)
