"""MMBench and MMBench-CN: two to four options, asked in every rotation; right is who is right in all of them.

The official table (.tsv) has the pictures in base64 and a row for each rotation: index, index + 1,000,000, ... The
official server asks GPT which option an answer means that names none. Here a judge of your choice may be asked
(`--judge-inputs`, `--judgements`); without one such answers are wrong, and the report says how many there are.
`--submission` writes the table for the server.
"""

import base64
import binascii
import csv
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from eval.intervals import mean_score, mean_scores_by
from eval.scoring.judge_replies import read_letter
from eval.scoring.llava_format import OPTION_LETTER
from eval.scoring.metrics import matched_option, most_frequent
from eval.scoring.protocol import Benchmark, EncodedImage, Mark, Predictions, Question, Scores
from eval.scoring.records import align, require
from sparse_vlm.errors import UserError
from sparse_vlm.files import new_file

LETTER_INSTRUCTION_CN = "请直接回答选项字母。"
LETTERS = "ABCD"
ROUND = 1_000_000  # between the indices of a question's rotations
NOT_SUBMITTED = ("hint", "category", "source", "image", "comment", "l2-category")  # LLaVA's converter drops these
PREDICTION_COLUMN = 6
ABSENT = (
    "",
    "nan",
    "none",
    "na",
    "n/a",
    "null",
    "<na>",
)  # what pandas, which the official scorers use, reads as no cell
MATCH = """\
Which option does an answer to a single-choice question mean? Reply with one capital letter: that of the option whose \
meaning is nearest to the answer's, or Z if the answer's meaning is clearly different from all options. With options \
A. teddy bear, B. rabbit, C. cat, D. dog the answer "a cute teddy bear" means A, and "spider" means Z.

Question: {question}
Options:
{options}
Answer: {answer}
Letter: """
Row = dict[str, str]


def _protocol(language: str) -> str:
    return (
        f"MMBench ({language}), asked for the option's letter; right is a question that is answered "
        "right in every rotation of its options; an answer that names no option is the judge's to read, or wrong"
    )


def _read_table(path: Path) -> list[Row]:
    """The official table's rows, by column.

    Raises:
        UserError: no such file, or not that table.
    """
    csv.field_size_limit(sys.maxsize)  # a picture is one cell
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", restval=""))
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no table of tab-separated values ({error}).") from None
    missing = {"index", "question", "image", "A", "B"} - set(rows[0] if rows else ())
    if missing:
        raise UserError(f"{path} has no column {sorted(missing)[0]!r}. Expected MMBench's official .tsv.")
    for row in rows:
        if not row["index"].isdigit():
            raise UserError(f"{path}: an index is {row['index']!r}, expected a number.")
    return rows


def _cell(row: Row, column: str) -> str:
    """A cell's text; "" where it is absent or the table's way of saying so."""
    text = row.get(column) or ""
    return "" if text.lower() in ABSENT else text


def _options(row: Row) -> dict[str, str]:
    """Letter -> option, up to the first one that is missing."""
    options = {}
    for letter in LETTERS:
        if not _cell(row, letter):
            break
        options[letter] = _cell(row, letter)
    return options


def _load_questions(file: Path | None, instruction: str) -> list[Question]:
    path = require(file, "--questions", "the official mmbench_*.tsv")
    rows = _read_table(path)
    by_index = {int(row["index"]): row for row in rows}
    images: dict[tuple[int, str], EncodedImage] = {}  # that of all rotations is held once
    questions = []
    for row in rows:
        index = int(row["index"])
        lines = [_cell(row, "hint"), row["question"], *(f"{key}. {text}" for key, text in _options(row).items())]
        text = "\n".join([*(line for line in lines if line), instruction])
        key = index % ROUND, _image_cell(row, by_index)
        if key not in images:
            images[key] = _image(*key, path)
        questions.append(Question(index, text, images[key], _cell(row, "category") or "default"))
    return questions


def _image_cell(row: Row, by_index: dict[int, Row]) -> str:
    """A row's image in base64; a rotation may name the row that holds it instead."""
    cell = row["image"]
    return by_index[int(cell)]["image"] if cell.isdigit() and int(cell) in by_index else cell


def _image(index: int, cell: str, path: Path) -> EncodedImage:
    try:
        return EncodedImage(f"{path.name} {index}", base64.b64decode(cell, validate=True))
    except binascii.Error as error:
        raise UserError(f"{path}: the picture of index {index} is not base64 ({error}).") from None


def load_english(file: Path | None, images: Path | None) -> list[Question]:
    """The questions of mmbench_dev_*.tsv; the pictures are in it."""
    return _load_questions(file, OPTION_LETTER)


def load_chinese(file: Path | None, images: Path | None) -> list[Question]:
    """The questions of mmbench_dev_cn_*.tsv; the pictures are in it."""
    return _load_questions(file, LETTER_INSTRUCTION_CN)


def _read(annotations: Path | None, questions: Sequence[Question]) -> list[Row]:
    path = require(annotations, "--annotations", "the official dev .tsv, which has the answers (test has none)")
    rows = {row["index"]: row for row in _read_table(path)}
    known = align(questions, [str(question.id) for question in questions], rows, path)
    for row in known:
        if _cell(row, "answer") not in _options(row):
            raise UserError(
                f"{path}: index {row['index']} has {_cell(row, 'answer')!r} as its answer, not one of its options. "
                "Answers to the test questions are the server's; write them with --submission."
            )
    return known


def read_known(questions: Sequence[Question], annotations: Path | None) -> list[Row]:
    """The table's row of each question, without the image."""
    return [{name: cell for name, cell in row.items() if name != "image"} for row in _read(annotations, questions)]


def mark(question: Question, text: str, known: Row) -> Mark:
    """The option that the answer names."""
    letter, right = matched_option(text, _options(known)), _cell(known, "answer")
    return Mark(question, known, text, letter, float(letter == right), right)


def _rotated(question: Question) -> int:
    """What the rotations of a question have in common."""
    return int(question.id) % ROUND


def aggregate(marks: Sequence[Mark]) -> Scores:
    """Accuracy over questions in all rotations, by ability and category, over single rows; unreadable answers."""
    rows, hits = [row.known for row in marks], [row.credit for row in marks]
    groups = [_rotated(row.question) for row in marks]
    rounds: dict[int, list[int]] = {}
    for place, group in enumerate(groups):
        rounds.setdefault(group, []).append(place)
    if max(map(len, rounds.values())) == 1:
        raise UserError("The table has no rotations of its questions, so it cannot be scored as MMBench is.")
    circular = [float(all(hits[place] for place in places)) for places in rounds.values()]
    first = [rows[places[0]] for places in rounds.values()]
    scores: Scores = {("accuracy",): mean_score(circular, list(rounds))}
    for name, column in (("accuracy_by_ability", "l2-category"), ("accuracy_by_category", "category")):
        kinds = [_cell(row, column) for row in first]
        if all(kinds):
            scores |= mean_scores_by(name, kinds, circular, list(rounds))
    scores["accuracy_single_rows",] = mean_score(hits, groups)
    scores["answers_that_name_no_option",] = mean_score([float(row.read is None) for row in marks], groups)
    return scores


def judge_inputs(questions: Sequence[Question], predictions: Predictions, annotations: Path | None) -> list[str | None]:
    """What to ask about the answers that name no option."""
    prompts: list[str | None] = []
    for text, row in zip(predictions, _read(annotations, questions), strict=True):
        options = _options(row)
        lines = "\n".join(f"{letter}. {option}" for letter, option in options.items())
        clear = matched_option(text, options) is not None
        prompts.append(None if clear else MATCH.format(question=row["question"], options=lines, answer=text))
    return prompts


def floors(questions: Sequence[Question], annotations: Path | None) -> dict[str, Predictions]:
    """One letter to everything: rotations leave it nothing."""
    letter = most_frequent(_cell(row, "answer") for row in _read(annotations, questions))
    return {f"always {letter}": [letter] * len(questions)}


def write_submission(file: Path | None, questions: Sequence[Question], predictions: Predictions, output: Path) -> None:
    """The server's .xlsx: the table without pictures and abilities, with a column "prediction", as LLaVA makes it."""
    try:
        from openpyxl import Workbook
    except ImportError:
        raise UserError("Writing MMBench's .xlsx needs openpyxl: pip install openpyxl.") from None
    rows = _read_table(require(file, "--questions", "the official mmbench_*.tsv"))
    columns = [name for name in rows[0] if name not in NOT_SUBMITTED]
    columns.insert(PREDICTION_COLUMN, "prediction")
    book = Workbook()
    sheet = book.worksheets[0]
    sheet.append(columns)
    for row, text in zip(rows, predictions, strict=True):
        cells: dict[str, str | int] = {**row, "index": int(row["index"]), "prediction": text}
        sheet.append([cells[name] if name in ("index", "prediction") else _cell(row, name) for name in columns])
    with new_file(output) as temporary:
        book.save(temporary)


MMBENCH = Benchmark(
    protocol=lambda questions: _protocol("English"),
    max_new_tokens=128,
    load_questions=load_english,
    known=read_known,
    mark=mark,
    aggregate=aggregate,
    unit=_rotated,
    floors=floors,
    annotated=True,
    write_submission=write_submission,
    judge_inputs=judge_inputs,
    read_reply=read_letter,
    judge="optional",
    published=("MMB", lambda scores: 100 * scores["accuracy",].value),
)
MMBENCH_CN = replace(
    MMBENCH, protocol=lambda questions: _protocol("Chinese"), load_questions=load_chinese, published=None
)
score = MMBENCH.score
