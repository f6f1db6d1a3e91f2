"""VQAv2: open questions about COCO pictures with ten answers each. Scored here on val, by the server on test-dev."""

from collections.abc import Sequence
from pathlib import Path

from eval.scoring.human_answers import (
    TenAnswers,
    answers_of,
    mark_by,
    most_frequent_floor,
    read_ten_answers,
    scores_by_type,
    write_evalai,
)
from eval.scoring.llava_format import SHORT_ANSWER, image_file, is_llava_file, read_llava_questions
from eval.scoring.metrics import vqa_accuracy
from eval.scoring.protocol import Benchmark, Mark, Predictions, Question, Scores
from eval.scoring.records import Record, align, field, official_file, read_json, require
from eval.scoring.vqa_text import simplify_evalai

PROTOCOL = (
    "VQAv2, asked for a single word or phrase; accuracy of the VQA challenge, ten answers each, of "
    "the answers as they are and as LLaVA submits them (published numbers)"
)


def load_questions(file: Path | None, images: Path | None) -> list[Question]:
    """LLaVA's llava_vqav2_*.jsonl, or the official v2_OpenEnded_*_questions.json; `images` is the split's folder."""
    path = require(file, "--questions", "v2_OpenEnded_mscoco_*_questions.json or LLaVA's .jsonl")
    if is_llava_file(path):
        return read_llava_questions(path, images)
    content = read_json(path)
    # the pictures of test-dev are some of test
    split = field(content, "data_subtype", str, str(path)).replace("test-dev", "test")
    questions = []
    for index, record in enumerate(field(content, "questions", list, str(path))):
        place = f"{path}, question {index}"
        name = f"COCO_{split}_{field(record, 'image_id', int, place):012d}.jpg"
        text = field(record, "question", str, place)
        id_ = field(record, "question_id", int, place)
        questions.append(Question(id_, f"{text}\n{SHORT_ANSWER}", image_file(images, name)))
    return questions


def _read(annotations: Path | None, questions: Sequence[Question]) -> list[Record]:
    """The annotation of each question."""
    path = official_file(annotations, "the official v2_mscoco_*_annotations.json (test has none)", "*annotations.json")
    records = field(read_json(path), "annotations", list, str(path))
    by_id = {str(field(record, "question_id", int, str(path))): record for record in records}
    return align(questions, [str(question.id) for question in questions], by_id, path)


def read_known(questions: Sequence[Question], annotations: Path | None) -> list[TenAnswers]:
    """The answers to each question and their type."""
    return read_ten_answers(_read(annotations, questions), str(annotations))


def aggregate(marks: Sequence[Mark]) -> Scores:
    """Accuracy over all questions and by the type of the answer: "yes/no", "number", "other".

    "accuracy" is what the official scorer says of the answers as they are; it compares to the letter where all people
    agree. "accuracy_submitted" is of the answers in the form in which LLaVA submits them and lmms-eval scores them,
    small letters and no punctuation, so published numbers are of that kind.
    """
    accuracies = {"accuracy": vqa_accuracy, "accuracy_submitted": _accuracy_submitted}
    return scores_by_type(accuracies, marks)


def _accuracy_submitted(prediction: str, answers: Sequence[str]) -> float:
    return vqa_accuracy(simplify_evalai(prediction), answers)


def floors(questions: Sequence[Question], annotations: Path | None) -> dict[str, Predictions]:
    """The answer given most often to these very questions."""
    return most_frequent_floor([answers_of(record, str(annotations)) for record in _read(annotations, questions)])


def write_submission(file: Path | None, questions: Sequence[Question], predictions: Predictions, output: Path) -> None:
    """EvalAI's result file: a list of {"question_id", "answer"}."""
    write_evalai("question_id", [question.id for question in questions], predictions, output)


BENCHMARK = Benchmark(
    protocol=lambda questions: PROTOCOL,
    max_new_tokens=128,
    load_questions=load_questions,
    known=read_known,
    mark=mark_by(vqa_accuracy),
    aggregate=aggregate,
    floors=floors,
    write_submission=write_submission,
    published=("VQAv2", lambda scores: 100 * scores["accuracy_submitted",].value),
)
score = BENCHMARK.score
