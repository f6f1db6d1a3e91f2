"""NExT-QA, multiple choice: why, how, when and what in videos of people and animals; five options.

The official scorer compares the index of an option, which other models choose; the option that a written answer names
is read here as in MMBench.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.benchmarks.mmbench import matched_option
from eval.benchmarks.videos.folder import NamedFiles
from eval.intervals import mean_score, mean_scores_by
from eval.scoring.floors import most_frequent_letter_floor
from eval.scoring.protocol import Benchmark, Mark, Predictions, Question, Scores, Video
from eval.scoring.records import align, read_text, require, require_unique
from sparse_vlm.data.instructions import OPTION_LETTER
from sparse_vlm.errors import UserError

PROTOCOL = (
    "NExT-QA multiple choice, asked for the option's letter; an answer is read as in MMBench (VLMEvalKit's rule); "
    "C, T and D are the official Acc_C, Acc_T and Acc_D"
)
WHAT = "NExT-QA's val.csv or test.csv of the multiple-choice task"
LETTERS = ("A", "B", "C", "D", "E")
COLUMNS = ("video", "question", "answer", "qid", "type", "a0", "a1", "a2", "a3", "a4")
GROUPS = {"C": "causal", "T": "temporal", "D": "descriptive"}
# kinds of questions in the files -> in the official report, which joins "before" and "after"
TYPES = {"CW": "CW", "CH": "CH", "TP": "TN", "TN": "TN", "TC": "TC", "DC": "DC", "DL": "DL", "DO": "DO"}


@dataclass(frozen=True)
class Entry:
    """A question with its kind, its options by letter, and the right letter."""

    id: str
    video: str
    question: str
    kind: str
    options: dict[str, str]
    answer: str


def load_questions(file: Path | None, videos: Path | None) -> list[Question]:
    """Load the questions about the videos below a folder, in which they may be in folders as in VidOR."""
    found = NamedFiles(videos)
    return [
        Question(entry.id, _prompt(entry), Video(found.find(entry.video)), entry.kind)
        for entry in read_entries(require(file, "--questions", WHAT))
    ]


def _prompt(entry: Entry) -> str:
    options = (f"{letter}. {words}" for letter, words in entry.options.items())
    return "\n".join([entry.question, *options, OPTION_LETTER])


def read_entries(path: Path) -> list[Entry]:
    """Read the questions of an official table.

    Raises:
        UserError: the file cannot be read, a column is missing, a value is not of its kind, or an id occurs twice.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise UserError(f"{path} has no column {missing[0]!r}. Give {WHAT}.")
        entries = [_entry(row, f"{path}, line {reader.line_num}") for row in reader]
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}. Give {WHAT}.") from None
    if not entries:
        raise UserError(f"{path} has no questions.")
    require_unique(path, [entry.id for entry in entries], "{!r} (video and qid)", "Give the official file")
    return entries


def _entry(row: Mapping[str | None, Any], place: str) -> Entry:
    texts = {column: row[column].strip() for column in COLUMNS if row[column] is not None}
    if len(texts) < len(COLUMNS) or None in row:
        raise UserError(f"{place} has fewer or more cells than the heading.")
    if texts["answer"] not in ("0", "1", "2", "3", "4"):
        raise UserError(f"{place}: the answer is {texts['answer']!r}, not the index of an option, 0 to 4.")
    if texts["type"] not in TYPES:
        raise UserError(f"{place}: the type is {texts['type']!r}, not one of {', '.join(TYPES)}.")
    options = {letter: texts[f"a{place}"] for place, letter in enumerate(LETTERS)}
    id_ = f"{texts['video']}_{texts['qid']}"  # as in the official files of results
    return Entry(id_, texts["video"], texts["question"], texts["type"], options, LETTERS[int(texts["answer"])])


def read_known(questions: Sequence[Question], annotations: Path | None) -> list[Entry]:
    """Return the entry of each question."""
    path = require(annotations, "--annotations", WHAT)
    entries = {entry.id: entry for entry in read_entries(path)}
    return align(questions, [str(question.id) for question in questions], entries, path)


def mark(question: Question, text: str, known: Entry) -> Mark:
    """Read the option that the answer names."""
    letter = matched_option(text, known.options)
    return Mark(question, known, text, letter, float(letter == known.answer), known.answer)


def aggregate(marks: Sequence[Mark]) -> Scores:
    """Compute the accuracy over all questions, and as the official scorer does by group and by type."""
    right, groups = [row.credit for row in marks], [row.question.image_name for row in marks]
    types = [TYPES[row.known.kind] for row in marks]
    return (
        {("accuracy",): mean_score(right, groups)}
        | mean_scores_by("accuracy_by_group", [GROUPS[kind[0]] for kind in types], right, groups)
        | mean_scores_by("accuracy_by_type", types, right, groups)
    )


def floors(questions: Sequence[Question], known: Sequence[Entry]) -> dict[str, Predictions]:
    """Return the floor that always gives the most frequent right letter of these questions."""
    return most_frequent_letter_floor((entry.answer for entry in known), questions)


BENCHMARK = Benchmark(
    protocol=lambda questions: PROTOCOL,
    load_questions=load_questions,
    known=read_known,
    mark=mark,
    aggregate=aggregate,
    medium="video",
    floors=floors,
    annotated=True,
)
