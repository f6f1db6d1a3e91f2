"""TextVQA: questions about text in images, ten answers each; with or without LLaVA's OCR hints in the prompt.

Prompts from LLaVA's question file contain "Reference OCR token: …", read from the image by an OCR system; those from
the official file do not. The two protocols differ by points, so the report names the one that was used.
"""

from collections.abc import Sequence
from pathlib import Path

from eval.scoring.human_answers import TenAnswers, evalai_accuracy, floors, mark_by, mean_accuracies, write_evalai
from eval.scoring.llava_format import image_file, is_llava_file, read_llava_questions
from eval.scoring.protocol import Benchmark, Predictions, Question
from eval.scoring.records import Record, align, field, official_file, read_json, require
from sparse_vlm.data.instructions import SHORT_ANSWER
from sparse_vlm.errors import UserError

OCR_HINT = "Reference OCR token:"


def protocol(questions: Sequence[Question]) -> str:
    """Return the protocol line, which counts the prompts with OCR hints."""
    hints = sum(OCR_HINT in question.text for question in questions)
    how = "without OCR hints" if not hints else f"OCR hints in {hints} of {len(questions)} prompts"
    return f"TextVQA, {how}, asked for a single word or phrase; EvalAI's accuracy, ten answers each"


def load_questions(file: Path | None, images: Path | None) -> list[Question]:
    """Load LLaVA's llava_textvqa_val_v051_ocr.jsonl or the official TextVQA_0.5.1_val.json (without hints)."""
    path = require(file, "--questions", "LLaVA's llava_textvqa_val_v051_ocr.jsonl or TextVQA_0.5.1_*.json")
    if is_llava_file(path):
        return read_llava_questions(path, images)
    questions = []
    for index, record in enumerate(field(read_json(path), "data", list, str(path))):
        place = f"{path}, entry {index}"
        image = image_file(images, f"{field(record, 'image_id', str, place)}.jpg")
        text = f"{field(record, 'question', str, place)}\n{SHORT_ANSWER}"
        questions.append(Question(field(record, "question_id", int, place), text, image))
    return questions


def _words(prompt: str) -> str:
    """Return the question in a prompt, without hints and instruction, which are on their own lines, in lower case."""
    lines = (line for line in prompt.split("\n") if not line.startswith(OCR_HINT))
    return next(lines, "").lower()


def read_known(questions: Sequence[Question], annotations: Path | None) -> list[TenAnswers]:
    """Return the ten answers to each question.

    Questions are found by the official file's ids, which are numbers, or by image and words, as LLaVA's scorer does. If
    two questions about one image have the same words, LLaVA's scorer uses the last one's answers for both.
    """
    path = official_file(annotations, "the official TextVQA_0.5.1_val.json", "TextVQA_*_val.json")
    records = field(read_json(path), "data", list, str(path))
    if all(isinstance(question.id, int) for question in questions):
        by_id = {field(record, "question_id", int, str(path)): record for record in records}
        known = align(questions, [int(question.id) for question in questions], by_id, path)
    else:
        by_words = {_annotation_key(record, path): record for record in records}
        keys = [(Path(question.image_name).stem, _words(question.text)) for question in questions]
        known = align(questions, keys, by_words, path)
    return [_ten_answers(record, f"{path}, question {record.get('question_id')!r}") for record in known]


def _annotation_key(record: Record, path: Path) -> tuple[str, str]:
    return field(record, "image_id", str, str(path)), field(record, "question", str, str(path)).lower()


def _ten_answers(record: Record, place: str) -> TenAnswers:
    answers = field(record, "answers", list, place)
    if len(answers) != 10 or not all(isinstance(answer, str) for answer in answers):
        raise UserError(f"{place} has {len(answers)} answers, not ten texts.")
    return TenAnswers(answers)


def write_submission(file: Path | None, questions: Sequence[Question], predictions: Predictions, output: Path) -> None:
    """Write EvalAI's result file: a list of {"question_id", "answer"}.

    Raises:
        UserError: LLaVA's question file, whose ids are those of the images.
    """
    if not all(isinstance(question.id, int) for question in questions):
        raise UserError(f"{file} has no question ids, only those of images. The server needs the official file's.")
    write_evalai("question_id", [question.id for question in questions], predictions, output)


BENCHMARK = Benchmark(
    protocol=protocol,
    load_questions=load_questions,
    known=read_known,
    mark=mark_by(evalai_accuracy),
    aggregate=mean_accuracies(accuracy=evalai_accuracy),
    floors=floors,
    write_submission=write_submission,
    published=("TextVQA", lambda scores: 100 * scores["accuracy",].value),
)
