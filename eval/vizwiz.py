"""VizWiz: questions of blind people about their own photographs, ten answers each, many unanswerable.

Scored here on val, by the server on test; published numbers are the server's.
"""

from collections.abc import Sequence
from pathlib import Path

from eval.llava_format import SHORT_ANSWER, image_file, is_llava_file, read_llava_questions
from eval.metrics import most_frequent, textvqa_accuracy
from eval.protocol import Benchmark, Predictions, Question, Scores
from eval.records import Record, align, field, read_json, require
from eval.vqa_text import simplify_evalai
from eval.vqav2 import answers_of, scores_by_type
from sparse_vlm.errors import UserError
from sparse_vlm.files import write_json

PROTOCOL = (
    "VizWiz, asked for a single word or phrase or 'Unanswerable', greedy generation; EvalAI's accuracy, ten answers "
    "each"
)
INSTRUCTION = f"When the provided information is insufficient, respond with 'Unanswerable'.\n{SHORT_ANSWER}"


def load_questions(file: Path | None, images: Path | None) -> list[Question]:
    """LLaVA's llava_test.jsonl, or the official val.json or test.json; there a question's id is its picture's name."""
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
    content = read_json(path)
    if not isinstance(content, list) or not content:
        raise UserError(f"{path} must be a list of questions, as VizWiz's official files are.")
    return content


def _read(annotations: Path | None, questions: Sequence[Question]) -> list[Record]:
    path = require(annotations, "--annotations", "the official val.json (test has no answers)")
    by_image = {field(record, "image", str, str(path)): record for record in _read_official(path)}
    return align(questions, [Path(question.image_name).name for question in questions], by_image, path)


def score(questions: Sequence[Question], predictions: Predictions, annotations: Path | None) -> Scores:
    """Accuracy over all questions and by the type of the answer, "unanswerable" among them."""
    return scores_by_type(textvqa_accuracy, questions, predictions, _read(annotations, questions), str(annotations))


def floors(questions: Sequence[Question], annotations: Path | None) -> dict[str, Predictions]:
    """The answer given most often to these very questions: "unanswerable"."""
    answers = [answer for record in _read(annotations, questions) for answer in answers_of(record, str(annotations))]
    return {"most frequent answer": [most_frequent(answers)] * len(questions)}


def write_submission(file: Path | None, questions: Sequence[Question], predictions: Predictions, output: Path) -> None:
    """EvalAI's result file: a list of {"image", "answer"}."""
    answers = zip(questions, predictions, strict=True)
    names = [(Path(question.image_name).name, text) for question, text in answers]
    write_json(output, [{"image": name, "answer": simplify_evalai(text)} for name, text in names])


BENCHMARK = Benchmark(
    protocol=lambda questions: PROTOCOL,
    max_new_tokens=128,
    load_questions=load_questions,
    score=score,
    floors=floors,
    write_submission=write_submission,
    published=("VizWiz", lambda scores: 100 * scores["accuracy",].value),
)
