"""SEED-Bench: questions with four options, nine kinds about images and three about videos.

Of a video, LLaVA shows the middle frame, which its question file names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.intervals import mean_score, mean_scores_by
from eval.scoring.floors import most_frequent_letter_floor
from eval.scoring.llava_format import image_file, is_llava_file, read_llava_questions
from eval.scoring.protocol import Benchmark, Mark, Predictions, Question, Scores
from eval.scoring.records import (
    Record,
    align,
    field,
    official_file,
    question_id,
    read_json,
    require,
    write_lines,
)
from sparse_vlm.data.instructions import OPTION_LETTER

PROTOCOL = (
    "SEED-Bench, asked for the option's letter, the middle frame of videos; right is the letter alone, with nothing "
    "after it"
)
LETTERS = ("A", "B", "C", "D")


def load_questions(file: Path | None, images: Path | None) -> list[Question]:
    """Load LLaVA's llava-seed-bench.jsonl, or the questions about images of the official SEED-Bench.json."""
    path = require(file, "--questions", "LLaVA's llava-seed-bench.jsonl or the official SEED-Bench.json")
    if is_llava_file(path):
        return read_llava_questions(path, images)
    questions = []
    for id_, record in _read_official(path).items():
        place = f"{path}, {id_}"
        if field(record, "data_type", str, place) == "image":
            options = [f"{letter}. {field(record, f'choice_{letter.lower()}', str, place)}" for letter in "ABCD"]
            text = "\n".join([field(record, "question", str, place), *options, OPTION_LETTER])
            questions.append(Question(id_, text, image_file(images, field(record, "data_id", str, place))))
    return questions


def _read_official(path: Path) -> dict[str, Record]:
    """Read the official records by id. LLaVA's file has some of the ids as numbers."""
    records = field(read_json(path), "questions", list, str(path))
    return {str(question_id(record, f"{path}, question {place}")): record for place, record in enumerate(records)}


def _read(annotations: Path | None, questions: Sequence[Question]) -> tuple[list[Record], Path]:
    """Return the official record of each question. All questions about images, about videos, or both must be asked."""
    path = official_file(annotations, "the official SEED-Bench.json", "SEED-Bench.json")
    records = _read_official(path)
    keys = [str(question.id) for question in questions]
    media = {records[key].get("data_type") for key in keys if key in records}
    wanted = {key: record for key, record in records.items() if record.get("data_type") in media}
    return align(questions, keys, wanted, path), path


@dataclass(frozen=True)
class _Known:
    """The right letter, "image" or "video", the kind of question, and the image or video that it is about."""

    answer: str
    medium: str
    kind: str
    source: str


def read_known(questions: Sequence[Question], annotations: Path | None) -> list[_Known]:
    """Return the annotation of each question."""
    known, path = _read(annotations, questions)
    place = str(path)
    names = {str(id_): name for name, id_ in field(read_json(path), "question_type", dict, place).items()}
    kinds = [str(record.get("question_type_id")) for record in known]
    return [
        _Known(
            field(record, "answer", str, place),
            field(record, "data_type", str, place),
            names.get(kind, kind),
            str(record.get("data_id")),
        )
        for record, kind in zip(known, kinds, strict=True)
    ]


def mark(question: Question, text: str, known: _Known) -> Mark:
    """Mark an answer as LLaVA's scorer does. Anything but a single letter is unreadable."""
    return Mark(question, known, text, text if text in LETTERS else None, float(text == known.answer), known.answer)


def aggregate(marks: Sequence[Mark]) -> Scores:
    """Compute the accuracy over all questions, over those about images and about videos, and by kind."""
    right = [row.credit for row in marks]
    # questions about the same source may name different folders of frames, so the source is the group
    groups = [row.known.source for row in marks]
    media, kinds = [row.known.medium for row in marks], [row.known.kind for row in marks]
    return (
        {("accuracy",): mean_score(right, groups)}
        | mean_scores_by("accuracy_by_medium", media, right, groups)
        | mean_scores_by("accuracy_by_type", kinds, right, groups)
    )


def floors(questions: Sequence[Question], known: Sequence[_Known]) -> dict[str, Predictions]:
    """Return the floor that always gives the most frequent right letter of these questions."""
    return most_frequent_letter_floor((row.answer for row in known), questions)


def write_submission(file: Path | None, questions: Sequence[Question], predictions: Predictions, output: Path) -> None:
    """Write the leaderboard's JSON lines of {"question_id", "prediction"}."""
    answers = zip(questions, predictions, strict=True)
    write_lines(output, [{"question_id": str(question.id), "prediction": text} for question, text in answers])


BENCHMARK = Benchmark(
    protocol=lambda questions: PROTOCOL,
    load_questions=load_questions,
    known=read_known,
    mark=mark,
    aggregate=aggregate,
    floors=floors,
    write_submission=write_submission,
)
