"""GQA: compositional questions about Visual Genome pictures, one answer each; usually testdev_balanced."""

from collections.abc import Sequence
from pathlib import Path

from eval.intervals import mean_score, mean_scores_by
from eval.llava_format import SHORT_ANSWER, image_file, is_llava_file, read_llava_questions
from eval.metrics import gqa_form, most_frequent
from eval.protocol import Benchmark, Predictions, Question, Scores
from eval.records import Record, align, field, read_json, require
from sparse_vlm.errors import UserError
from sparse_vlm.files import write_json

PROTOCOL = "GQA, asked for a single word or phrase, greedy generation; the answer to the letter, small letters"


def load_questions(file: Path | None, images: Path | None) -> list[Question]:
    """LLaVA's llava_gqa_testdev_balanced.jsonl, or an official *_questions.json."""
    path = require(file, "--questions", "testdev_balanced_questions.json or LLaVA's .jsonl")
    if is_llava_file(path):
        return read_llava_questions(path, images)
    questions = []
    for id_, record in _read_official(path).items():
        text = field(record, "question", str, f"{path}, {id_}")
        image = image_file(images, f"{field(record, 'imageId', str, f'{path}, {id_}')}.jpg")
        questions.append(Question(id_, f"{text}\n{SHORT_ANSWER}", image))
    return questions


def _read_official(path: Path) -> dict[str, Record]:
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} must be an object of question id -> question, as GQA's official files are.")
    return content


def _read(annotations: Path | None, questions: Sequence[Question]) -> list[Record]:
    path = require(annotations, "--annotations", "the official testdev_balanced_questions.json, which has the answers")
    known = align(questions, [str(question.id) for question in questions], _read_official(path), path)
    for question, record in zip(questions, known, strict=True):
        if question.text.split("\n")[0].strip() != field(record, "question", str, str(path)).strip():
            raise UserError(
                f"{path} has another question under id {question.id!r}: {record['question']!r}, asked was "
                f"{question.text!r:.120}."
            )
    return known


def score(questions: Sequence[Question], predictions: Predictions, annotations: Path | None) -> Scores:
    """Accuracy over all balanced questions, of the open and the binary ones, and by structure and meaning."""
    place = str(annotations)
    rows = [
        (record, float(gqa_form(text) == field(record, "answer", str, place)), question.image_name)
        for question, text, record in zip(questions, predictions, _read(annotations, questions), strict=True)
        if record.get("isBalanced", True)
    ]
    if not rows:
        raise UserError(f"{place} has no balanced question, and GQA's accuracy is over those.")
    values, images = [value for _, value, _ in rows], [image for _, _, image in rows]
    types = [field(record, "types", dict, place) for record, _, _ in rows]
    structures = [str(kind.get("structural")) for kind in types]
    forms = ["open" if structure == "query" else "binary" for structure in structures]
    return (
        {("accuracy",): mean_score(values, images)}
        | mean_scores_by("accuracy_by_form", forms, values, images)
        | mean_scores_by("accuracy_by_structure", structures, values, images)
        | mean_scores_by("accuracy_by_meaning", [str(kind.get("semantic")) for kind in types], values, images)
    )


def floors(questions: Sequence[Question], annotations: Path | None) -> dict[str, Predictions]:
    """The answer that is right most often in these very questions."""
    answer = most_frequent(str(record.get("answer")) for record in _read(annotations, questions))
    return {"most frequent answer": [answer] * len(questions)}


def write_submission(file: Path | None, questions: Sequence[Question], predictions: Predictions, output: Path) -> None:
    """The official scorer's file of predictions: a list of {"questionId", "prediction"}."""
    answers = zip(questions, predictions, strict=True)
    write_json(output, [{"questionId": str(question.id), "prediction": gqa_form(text)} for question, text in answers])


BENCHMARK = Benchmark(
    protocol=lambda questions: PROTOCOL,
    max_new_tokens=128,
    load_questions=load_questions,
    score=score,
    floors=floors,
    write_submission=write_submission,
    published=("GQA", lambda scores: 100 * scores["accuracy",].value),
)
