"""VQAv2: open questions about COCO images, ten answers each. val is scored here, test-dev by the server."""

from collections.abc import Sequence
from pathlib import Path

from eval.scoring.human_answers import (
    TenAnswers,
    agreement,
    floors,
    mark_by,
    mean_accuracies,
    read_ten_answers,
    write_evalai,
)
from eval.scoring.llava_format import image_file, is_llava_file, read_llava_questions
from eval.scoring.protocol import Benchmark, Predictions, Question
from eval.scoring.records import align, field, official_file, read_json, require
from eval.scoring.vqa_text import on_one_line, simplify, simplify_evalai
from sparse_vlm.data.instructions import SHORT_ANSWER

PROTOCOL = (
    "VQAv2, asked for a single word or phrase; accuracy of the VQA challenge, ten answers each, for the answers as "
    "they are and as LLaVA submits them (as in published numbers)"
)


def load_questions(file: Path | None, images: Path | None) -> list[Question]:
    """Load LLaVA's llava_vqav2_*.jsonl or an official v2_OpenEnded_*_questions.json; `images` is its split's."""
    path = require(file, "--questions", "v2_OpenEnded_mscoco_*_questions.json or LLaVA's .jsonl")
    if is_llava_file(path):
        return read_llava_questions(path, images)
    content = read_json(path)
    # the images of test-dev are a subset of test's
    split = field(content, "data_subtype", str, str(path)).replace("test-dev", "test")
    questions = []
    for index, record in enumerate(field(content, "questions", list, str(path))):
        place = f"{path}, question {index}"
        name = f"COCO_{split}_{field(record, 'image_id', int, place):012d}.jpg"
        text = field(record, "question", str, place)
        id_ = field(record, "question_id", int, place)
        questions.append(Question(id_, f"{text}\n{SHORT_ANSWER}", image_file(images, name)))
    return questions


def read_known(questions: Sequence[Question], annotations: Path | None) -> list[TenAnswers]:
    """Return the answers to each question and their type."""
    path = official_file(annotations, "the official v2_mscoco_*_annotations.json (test has none)", "*annotations.json")
    records = field(read_json(path), "annotations", list, str(path))
    by_id = {str(field(record, "question_id", int, str(path))): record for record in records}
    known = align(questions, [str(question.id) for question in questions], by_id, path)
    return read_ten_answers(known, str(annotations))


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Compute the accuracy of the VQA challenge's scorer, 0 to 1.

    Where all annotators agree to the letter, the scorer compares letter by letter, otherwise in the form of `simplify`.

    Args:
        prediction: the model's answer.
        answers: the annotators' answers, usually 10.
    """
    prediction, answers = on_one_line(prediction), [on_one_line(answer) for answer in answers]
    if len(set(answers)) > 1:
        prediction, answers = simplify(prediction), [simplify(answer) for answer in answers]
    return agreement(prediction, answers)


def submitted_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Compute `vqa_accuracy` of an answer in the form in which LLaVA submits it and lmms-eval scores it.

    That form is lower case without punctuation; published numbers are of this kind.
    """
    return vqa_accuracy(simplify_evalai(prediction), answers)


def write_submission(file: Path | None, questions: Sequence[Question], predictions: Predictions, output: Path) -> None:
    """Write EvalAI's result file: a list of {"question_id", "answer"}."""
    write_evalai("question_id", [question.id for question in questions], predictions, output)


BENCHMARK = Benchmark(
    protocol=lambda questions: PROTOCOL,
    load_questions=load_questions,
    known=read_known,
    mark=mark_by(vqa_accuracy),
    aggregate=mean_accuracies(accuracy=vqa_accuracy, accuracy_submitted=submitted_accuracy),
    floors=floors,
    write_submission=write_submission,
    published=("VQAv2", lambda scores: 100 * scores["accuracy_submitted",].value),
)
