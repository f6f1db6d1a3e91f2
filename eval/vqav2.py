"""VQAv2: open questions about COCO pictures with ten answers each. Scored here on val, by the server on test-dev."""

from collections.abc import Callable, Sequence
from pathlib import Path

from eval.intervals import mean_score, mean_scores_by
from eval.llava_format import SHORT_ANSWER, image_file, is_llava_file, read_llava_questions
from eval.metrics import most_frequent, vqa_accuracy
from eval.protocol import Benchmark, Predictions, Question, Scores
from eval.records import Record, align, field, read_json, require
from eval.vqa_text import simplify_evalai
from sparse_vlm.files import write_json

PROTOCOL = (
    "VQAv2, asked for a single word or phrase, greedy generation; accuracy of the VQA challenge, ten answers each"
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
    path = require(annotations, "--annotations", "the official v2_mscoco_*_annotations.json (test has none)")
    records = field(read_json(path), "annotations", list, str(path))
    by_id = {str(field(record, "question_id", int, str(path))): record for record in records}
    return align(questions, [str(question.id) for question in questions], by_id, path)


def answers_of(record: Record, place: str) -> list[str]:
    """The annotators' answers in a record of VQAv2's or VizWiz's annotations."""
    return [field(answer, "answer", str, place) for answer in field(record, "answers", list, place)]


def score(questions: Sequence[Question], predictions: Predictions, annotations: Path | None) -> Scores:
    """Accuracy over all questions and by the type of the answer: "yes/no", "number", "other"."""
    return scores_by_type(vqa_accuracy, questions, predictions, _read(annotations, questions), str(annotations))


def scores_by_type(
    accuracy: Callable[[str, Sequence[str]], float],
    questions: Sequence[Question],
    predictions: Predictions,
    known: Sequence[Record],
    place: str,
) -> Scores:
    """Mean `accuracy` of the predictions against ten answers each, over all and by the records' "answer_type".

    Args:
        accuracy: (prediction, answers) -> 0–1.
        questions, predictions: in the same order.
        known: the questions' records.
        place: the file they are from, for errors.
    """
    values = [accuracy(text, answers_of(record, place)) for text, record in zip(predictions, known, strict=True)]
    images = [question.image_name for question in questions]
    kinds = [field(record, "answer_type", str, place) for record in known]
    return {("accuracy",): mean_score(values, images)} | mean_scores_by("accuracy_by_type", kinds, values, images)


def floors(questions: Sequence[Question], annotations: Path | None) -> dict[str, Predictions]:
    """The answer given most often to these very questions."""
    answers = [answer for record in _read(annotations, questions) for answer in answers_of(record, str(annotations))]
    return {"most frequent answer": [most_frequent(answers)] * len(questions)}


def write_submission(file: Path | None, questions: Sequence[Question], predictions: Predictions, output: Path) -> None:
    """EvalAI's result file: a list of {"question_id", "answer"}."""
    answers = zip(questions, predictions, strict=True)
    write_json(output, [{"question_id": question.id, "answer": simplify_evalai(text)} for question, text in answers])


BENCHMARK = Benchmark(
    protocol=lambda questions: PROTOCOL,
    max_new_tokens=128,
    load_questions=load_questions,
    score=score,
    floors=floors,
    write_submission=write_submission,
    published=("VQAv2", lambda scores: 100 * scores["accuracy",].value),
)
