"""ScienceQA: school questions with two to five options, half of them with an image.

LLaVA's question file, llava_test_CQM-A.json, holds both questions and answers. Published numbers are those of questions
with an image ("SQA-I"). They hardly measure vision: without images, 63.5% are answered right (see the published rows).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.intervals import mean_score, mean_scores_by
from eval.scoring.floors import most_frequent_letter_floor
from eval.scoring.llava_format import image_file
from eval.scoring.protocol import Benchmark, Mark, Predictions, Question, Scores
from eval.scoring.records import Record, align, field, read_json, read_json_as, require
from sparse_vlm.data.instructions import OPTION_LETTER
from sparse_vlm.errors import UserError

PROTOCOL = (
    "ScienceQA test in LLaVA's format (context, question, options), asked for the option's letter; "
    "the letter as LLaVA's scorer reads it; unreadable answers are wrong"
)
LLAVA_FILE = "llava_test_CQM-A.json"
LETTERS = "ABCDE"


def load_questions(file: Path | None, images: Path | None) -> list[Question]:
    """Load the questions of llava_test_CQM-A.json."""
    path = require(file, "--questions", f"LLaVA's {LLAVA_FILE}")
    questions = []
    for index, record in enumerate(_read_llava(path)):
        place = f"{path}, entry {index}"
        text = _turn(record, 0, place).replace("<image>", "").strip()
        image = image_file(images, field(record, "image", str, place)) if "image" in record else None
        questions.append(Question(field(record, "id", str, place), f"{text}\n{OPTION_LETTER}", image))
    return questions


def _read_llava(path: Path) -> list[Record]:
    return read_json_as(path, list, f"a list of conversations, as LLaVA's {LLAVA_FILE} is")


def _turn(record: Record, index: int, place: str) -> str:
    turns = field(record, "conversations", list, place)
    if len(turns) != 2:
        raise UserError(f"{place}: a question and its answer are expected, got {len(turns)} turns.")
    return field(turns[index], "value", str, place)


@dataclass(frozen=True)
class _Known:
    """The right letter of a question, and its subject and grades if problems.json was read."""

    letter: str
    subject: str | None = None
    grades: str | None = None


def read_known(questions: Sequence[Question], annotations: Path | None) -> list[_Known]:
    """Read LLaVA's file, the official problems.json, or the folder of either."""
    what = f"the folder of problems.json or {LLAVA_FILE}, or one of these files"
    path = require(annotations, "--annotations", what)
    if path.is_dir():
        found = [path / name for name in ("problems.json", LLAVA_FILE) if (path / name).is_file()]
        if not found:
            raise UserError(f"{path} has no problems.json and no {LLAVA_FILE}.")
        path = found[0]
    content = read_json(path)
    known = _from_problems(content, path) if isinstance(content, dict) else _from_llava(path)
    wrong = [id_ for id_, record in known.items() if record.letter not in set(LETTERS)]
    if wrong:
        letter = known[wrong[0]].letter
        raise UserError(f"{path}: the answer to question {wrong[0]!r} is {letter!r}, not one of {LETTERS}.")
    return align(questions, [str(question.id) for question in questions], known, path)


def _from_llava(path: Path) -> dict[str, _Known]:
    places = ((record, f"{path}, entry {index}") for index, record in enumerate(_read_llava(path)))
    return {field(record, "id", str, place): _Known(_turn(record, 1, place)) for record, place in places}


def _from_problems(content: dict[str, Record], path: Path) -> dict[str, _Known]:
    """Read the test questions of problems.json, which has all splits."""
    known = {}
    for id_, record in content.items():
        place = f"{path}, {id_}"
        if field(record, "split", str, place) == "test":
            letter = chr(ord("A") + field(record, "answer", int, place) % 26)
            known[id_] = _Known(letter, record.get("subject"), _grades(record.get("grade")))
    return known


def _grades(grade: object) -> str | None:
    """Return the official half of "grade1" to "grade12"."""
    number = str(grade).removeprefix("grade")
    return ("1-6" if int(number) <= 6 else "7-12") if number.isdigit() else None


def read_letter(text: str) -> str | None:
    """Read the option as LLaVA's scorer does; None: unreadable.

    An answer is "B", "B. words", or contains "The answer is B." exactly once.
    """
    if text in ("A", "B", "C", "D", "E"):
        return text
    if re.match(r"[A-E]\. ", text):
        return text[0]
    stated = re.findall(r"The answer is ([A-Z]).", text)
    return stated[0] if len(stated) == 1 else None


def mark(question: Question, text: str, known: _Known) -> Mark:
    """Mark an answer by the letter that LLaVA's scorer reads."""
    letter = read_letter(text)
    return Mark(question, known, text, letter, float(letter == known.letter), known.letter)


def aggregate(marks: Sequence[Mark]) -> Scores:
    """Compute the accuracy over all questions, those with and without an image, and by subject and grades."""
    right, known, questions = zip(*((row.credit, row.known, row.question) for row in marks), strict=True)
    # each question without an image is its own group
    groups = [question.image_name or str(question.id) for question in questions]
    with_image = [index for index, question in enumerate(questions) if question.image is not None]
    without = [index for index, question in enumerate(questions) if question.image is None]
    scores: Scores = {("accuracy",): mean_score(right, groups)}
    for name, members in (("accuracy_image", with_image), ("accuracy_text", without)):
        if members:
            scores[name,] = mean_score([right[i] for i in members], [groups[i] for i in members])
    kinds = {"subject": [row.subject for row in known], "grades": [row.grades for row in known]}
    for name, values in kinds.items():
        if all(values):
            scores |= mean_scores_by(f"accuracy_by_{name}", list(map(str, values)), right, groups)
    return scores


def floors(questions: Sequence[Question], known: Sequence[_Known]) -> dict[str, Predictions]:
    """Return the floor that always gives the most frequent right letter of these questions."""
    return most_frequent_letter_floor((row.letter for row in known), questions)


def _with_image(scores: Scores) -> float | None:
    return 100 * scores["accuracy_image",].value if ("accuracy_image",) in scores else None


BENCHMARK = Benchmark(
    protocol=lambda questions: PROTOCOL,
    load_questions=load_questions,
    known=read_known,
    mark=mark,
    aggregate=aggregate,
    floors=floors,
    annotated=True,
    published=("SQA-I", _with_image),
)
