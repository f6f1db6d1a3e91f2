"""MMBench and MMBench-CN: two to four options, asked in every rotation; only answers right in all rotations count.

The official table (.tsv) has the images in base64 and a row for each rotation: index, index + 1,000,000, ... If an
answer names no option, the official server asks GPT which one it means. Here a judge of your choice may be asked
(`--judge_inputs`, `--judgements`); without one such answers are wrong, and the report has their share. `--submission`
writes the table for the server.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from eval.benchmarks.mmbench_table import Row, cell, decode_image, image_cell, options, read_table
from eval.intervals import mean_score, mean_scores_by
from eval.scoring.floors import most_frequent_letter_floor
from eval.scoring.judge_replies import read_letter
from eval.scoring.protocol import Benchmark, EncodedImage, Mark, Predictions, Question, Scores
from eval.scoring.records import align, require
from sparse_vlm.data.instructions import OPTION_LETTER, OPTION_LETTER_CN
from sparse_vlm.errors import UserError
from sparse_vlm.files import new_file

ROUND = 1_000_000  # distance between the indices of a question's rotations
NOT_SUBMITTED = (
    "hint",
    "category",
    "source",
    "image",
    "comment",
    "l2-category",
)  # columns that LLaVA's converter drops
PREDICTION_COLUMN = 6
# VLMEvalKit's rules: an answer that contains one of these sentences names no option
REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
LAST_WORDS = 4  # where an option's letter is an answer, not an article or an initial
MATCH = """\
Which option does an answer to a single-choice question mean? Reply with one capital letter: that of the option whose \
meaning is nearest to the answer's, or Z if the answer's meaning is clearly different from all options. With options \
A. teddy bear, B. rabbit, C. cat, D. dog the answer "a cute teddy bear" means A, and "spider" means Z.

Question: {question}
Options:
{options}
Answer: {answer}
Letter: """


def _protocol(language: str) -> str:
    return (
        f"MMBench ({language}), asked for the option's letter; a question is right if its answers are right in every "
        "rotation of its options; an answer that names no option is read by the judge, or wrong"
    )


def _load_questions(file: Path | None, instruction: str) -> list[Question]:
    path = require(file, "--questions", "the official mmbench_*.tsv")
    rows = read_table(path)
    by_index = {int(row["index"]): row for row in rows}
    images: dict[tuple[int, str], EncodedImage] = {}  # shared by all rotations of a question
    questions = []
    for row in rows:
        index = int(row["index"])
        lines = [cell(row, "hint"), row["question"], *(f"{key}. {text}" for key, text in options(row).items())]
        text = "\n".join([*(line for line in lines if line), instruction])
        key = index % ROUND, image_cell(row, by_index)
        if key not in images:
            images[key] = decode_image(*key, path)
        questions.append(Question(index, text, images[key], cell(row, "category") or "default"))
    return questions


def load_english(file: Path | None, images: Path | None) -> list[Question]:
    """Load the questions and images of mmbench_dev_*.tsv."""
    return _load_questions(file, OPTION_LETTER)


def load_chinese(file: Path | None, images: Path | None) -> list[Question]:
    """Load the questions and images of mmbench_dev_cn_*.tsv."""
    return _load_questions(file, OPTION_LETTER_CN)


def _read(annotations: Path | None, questions: Sequence[Question]) -> list[Row]:
    path = require(annotations, "--annotations", "the official dev .tsv, which has the answers (test has none)")
    rows = {row["index"]: row for row in read_table(path)}
    known = align(questions, [str(question.id) for question in questions], rows, path)
    for row in known:
        if cell(row, "answer") not in options(row):
            raise UserError(
                f"{path}: index {row['index']} has {cell(row, 'answer')!r} as its answer, not one of its options. "
                "Only the server has the answers to the test questions; write yours with --submission."
            )
    return known


def read_known(questions: Sequence[Question], annotations: Path | None) -> list[Row]:
    """Return the table's row of each question, without the image."""
    return [{name: cell for name, cell in row.items() if name != "image"} for row in _read(annotations, questions)]


def matched_option(text: str, options: Mapping[str, str]) -> str | None:
    """Return the letter of the option that an answer names; None: none or several. This is the match without a judge.

    An answer names an option's letter if that is the only letter among its words and one of its last four words (in
    "A dog is what I see." the "A" is not). Otherwise it names an option if it contains the words of this option only
    and is at most twice as long as all options together. A refusal names none. Source: VLMEvalKit's `can_infer`.

    Args:
        text: the answer.
        options: letter -> words of the option.
    """
    if any(refusal in text for refusal in REFUSALS):
        return None
    words = re.sub(r"[.()\[\],:;!*#{}]", " ", text).split()
    letters = [letter for letter in options if letter in words]
    if len(letters) == 1 and words.index(letters[0]) >= len(words) - LAST_WORDS:
        return letters[0]
    if not letters and "Z" in words:  # a judge's letter for none of them
        return None
    if len(text) > 2 * sum(map(len, options.values())):
        return None
    named = [letter for letter, option in options.items() if option.lower() in text.lower()]
    return named[0] if len(named) == 1 else None


def mark(question: Question, text: str, known: Row) -> Mark:
    """Read the option that the answer names."""
    letter, right = matched_option(text, options(known)), cell(known, "answer")
    return Mark(question, known, text, letter, float(letter == right), right)


def _rotated(question: Question) -> int:
    """Return the index that the rotations of a question share."""
    return int(question.id) % ROUND


def aggregate(marks: Sequence[Mark]) -> Scores:
    """Compute the accuracy over questions (in all and by ability and category) and rows, and the unreadable share."""
    rows, hits = [row.known for row in marks], [row.credit for row in marks]
    groups = [_rotated(row.question) for row in marks]
    rounds: dict[int, list[int]] = {}
    for place, group in enumerate(groups):
        rounds.setdefault(group, []).append(place)
    if max(map(len, rounds.values())) == 1:
        raise UserError("The table has no rotations of its questions, which MMBench's score needs.")
    circular = [float(all(hits[place] for place in places)) for places in rounds.values()]
    first = [rows[places[0]] for places in rounds.values()]
    scores: Scores = {("accuracy",): mean_score(circular, list(rounds))}
    for name, column in (("accuracy_by_ability", "l2-category"), ("accuracy_by_category", "category")):
        kinds = [cell(row, column) for row in first]
        if all(kinds):
            scores |= mean_scores_by(name, kinds, circular, list(rounds))
    scores["accuracy_single_rows",] = mean_score(hits, groups)
    scores["answers_that_name_no_option",] = mean_score([float(row.read is None) for row in marks], groups)
    return scores


def judge_inputs(questions: Sequence[Question], predictions: Predictions, annotations: Path | None) -> list[str | None]:
    """Build the prompts about the answers that name no option."""
    prompts: list[str | None] = []
    for text, row in zip(predictions, _read(annotations, questions), strict=True):
        choices = options(row)
        lines = "\n".join(f"{letter}. {option}" for letter, option in choices.items())
        clear = matched_option(text, choices) is not None
        prompts.append(None if clear else MATCH.format(question=row["question"], options=lines, answer=text))
    return prompts


def floors(questions: Sequence[Question], known: Sequence[Row]) -> dict[str, Predictions]:
    """Return the floor that always gives the most frequent right letter; it cannot be right in every rotation."""
    return most_frequent_letter_floor((cell(row, "answer") for row in known), questions)


def write_submission(file: Path | None, questions: Sequence[Question], predictions: Predictions, output: Path) -> None:
    """Write the server's .xlsx as LLaVA does: the table without images and abilities, with a column "prediction"."""
    try:
        from openpyxl import Workbook
    except ImportError:
        raise UserError("Writing MMBench's .xlsx needs openpyxl: pip install openpyxl.") from None
    rows = read_table(require(file, "--questions", "the official mmbench_*.tsv"))
    columns = [name for name in rows[0] if name not in NOT_SUBMITTED]
    columns.insert(PREDICTION_COLUMN, "prediction")
    book = Workbook()
    sheet = book.worksheets[0]
    sheet.append(columns)
    for row, text in zip(rows, predictions, strict=True):
        cells: dict[str, str | int] = {**row, "index": int(row["index"]), "prediction": text}
        sheet.append([cells[name] if name in ("index", "prediction") else cell(row, name) for name in columns])
    with new_file(output) as temporary:
        book.save(temporary)


MMBENCH = Benchmark(
    protocol=lambda questions: _protocol("English"),
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
