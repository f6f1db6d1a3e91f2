"""VizWiz: questions of blind people about their own photographs, ten answers each, many of them unanswerable.

The val split is scored here, test by the server; published numbers are the server's.
"""

from collections.abc import Sequence
from pathlib import Path

from eval.scoring.human_answers import (
    TenAnswers,
    evalai_accuracy,
    floors,
    mark_by,
    mean_accuracies,
    read_ten_answers,
    write_evalai,
)
from eval.scoring.llava_format import image_file, is_llava_file, read_llava_questions
from eval.scoring.protocol import Benchmark, Predictions, Question
from eval.scoring.records import Record, align, field, official_file, read_json_as, require
from sparse_vlm.data.instructions import SHORT_ANSWER

PROTOCOL = "VizWiz, asked for a single word or phrase or 'Unanswerable'; EvalAI's accuracy, ten answers each"
INSTRUCTION = f"When the provided information is insufficient, respond with 'Unanswerable'.\n{SHORT_ANSWER}"


def load_questions(file: Path | None, images: Path | None) -> list[Question]:
    """Load LLaVA's llava_test.jsonl, or the official val.json or test.json, whose ids are the images' names."""
    path = require(file, "--questions", "val.json, test.json or LLaVA's llava_test.jsonl")
    if is_llava_file(path):
        return read_llava_questions(path, images)
    questions = []
    for index, record in enumerate(_read_official(path)):
        name = field(record, "image", str, f"{path}, entry {index}")
        text = field(record, "question", str, f"{path}, entry {index}")
        questions.append(Question(name, f"{text}\n{INSTRUCTION}", image_file(images, name)))
    return questions


def _read_official(path: Path) -> list[Record]:
    return read_json_as(path, list, "a list of questions, as VizWiz's official files are")


def read_known(questions: Sequence[Question], annotations: Path | None) -> list[TenAnswers]:
    """Return the answers to each question and their type."""
    path = official_file(annotations, "the official val.json (test has no answers)", "val.json")
    by_image = {field(record, "image", str, str(path)): record for record in _read_official(path)}
    known = align(questions, [Path(question.image_name).name for question in questions], by_image, path)
    return read_ten_answers(known, str(annotations))


def write_submission(file: Path | None, questions: Sequence[Question], predictions: Predictions, output: Path) -> None:
    """Write EvalAI's result file: a list of {"image", "answer"}."""
    write_evalai("image", [Path(question.image_name).name for question in questions], predictions, output)


BENCHMARK = Benchmark(
    protocol=lambda questions: PROTOCOL,
    load_questions=load_questions,
    known=read_known,
    mark=mark_by(evalai_accuracy),
    aggregate=mean_accuracies(accuracy=evalai_accuracy),
    floors=floors,
    write_submission=write_submission,
    published=("VizWiz", lambda scores: 100 * scores["accuracy",].value),
)
