"""LLaVA-Bench (in the wild): open questions about 24 images; a judge grades our answer beside GPT-4's.

The score is the mean of our grades divided by the mean of GPT-4's. The judge of published numbers is gpt-4-0314.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eval.intervals import bootstrap_sums, middle_95
from eval.scoring.judge_replies import read_two_grades
from eval.scoring.llava_format import read_llava_questions
from eval.scoring.protocol import Benchmark, Mark, Predictions, Question, Score, Scores
from eval.scoring.records import Record, align, field, read_json, read_lines, require
from sparse_vlm.errors import UserError

PROTOCOL = (
    "LLaVA-Bench (in the wild), the plain question; mean grade of the answers, given by the judge of --judgements, "
    "divided by the mean grade of GPT-4's answers"
)


def load_questions(file: Path | None, images: Path | None) -> list[Question]:
    """Load the official questions.jsonl, with the categories conv, detail and complex."""
    return read_llava_questions(require(file, "--questions", "the official questions.jsonl"), images)


def judge_inputs(questions: Sequence[Question], predictions: Predictions, annotations: Path | None) -> list[str]:
    """Build LLaVA's prompts: captions of the image, question, GPT-4's answer, ours, and the category's rule.

    `annotations` is a folder with the benchmark's context.jsonl and answers_gpt4.jsonl, and LLaVA's rule.json
    (llava/eval/table).
    """
    what = "the folder of context.jsonl, answers_gpt4.jsonl and LLaVA's rule.json"
    folder = require(annotations, "--annotations", what)
    captions = _captions(folder / "context.jsonl")
    path = folder / "answers_gpt4.jsonl"
    references = {str(record.get("question_id")): record for _, record in read_lines(path)}
    rules = read_json(folder / "rule.json")
    known = align(questions, [str(question.id) for question in questions], references, path)
    prompts = []
    for question, text, reference in zip(questions, predictions, known, strict=True):
        image = Path(question.image_name).name
        if image not in captions:
            raise UserError(f"{folder / 'context.jsonl'} has no captions of {image!r}.")
        rule = field(rules, f"llava_bench_{question.category}", dict, str(folder / "rule.json"))
        prompts.append(_prompt(question, captions[image], field(reference, "text", str, str(path)), text, rule))
    return prompts


def _captions(path: Path) -> dict[str, str]:
    """Read the captions of each image, a line each."""
    captions = {}
    for _, record in read_lines(path):
        caption = record.get("caption")
        lines = [caption] if isinstance(caption, str) else field(record, "caption", list, str(path))
        captions[field(record, "image", str, str(path))] = "\n".join(lines)
    return captions


def _prompt(question: Question, captions: str, reference: str, text: str, rule: Record) -> str:
    role = field(rule, "role", str, "rule.json")
    parts = [
        f"[Context]\n{captions}",
        f"[Question]\n{question.text}",
        f"[{role} 1]\n{reference}\n\n[End of {role} 1]",
        f"[{role} 2]\n{text}\n\n[End of {role} 2]",
        f"[System]\n{field(rule, 'prompt', str, 'rule.json')}",
    ]
    return "\n\n".join(parts) + "\n\n"


def read_known(questions: Sequence[Question], annotations: Path | None) -> list[None]:
    """Return no annotations: the judge's prompts contain what it compares with."""
    return [None] * len(questions)


def mark(question: Question, text: str, known: None) -> Mark:
    """Read GPT-4's grade and ours, both of ten, from the judge's reply.

    Raises:
        UserError: the reply does not begin with two grades.
    """
    grades = read_two_grades(text)
    if grades is None:
        raise UserError(
            f"The judge's reply to question id {question.id!r} does not begin with a line of two numbers: "
            f"{text!r:.80}. Ask the judge again."
        )
    return Mark(question, grades, text, f"{grades[0]:g} {grades[1]:g}", grades[1] / 10)


def aggregate(marks: Sequence[Mark]) -> Scores:
    """Compute our mean grade divided by GPT-4's, over all questions and by category."""
    grades, questions = [row.known for row in marks], [row.question for row in marks]
    scores: Scores = {("relative",): _relative(grades, questions)}
    for category in sorted({question.category for question in questions}):
        members = [index for index, question in enumerate(questions) if question.category == category]
        scores["relative_by_category", category] = _relative(
            [grades[index] for index in members], [questions[index] for index in members]
        )
    return scores


def _relative(grades: Sequence[tuple[float, float]], questions: Sequence[Question]) -> Score:
    reference, ours = np.asarray(grades).sum(axis=0)
    if reference <= 0:
        raise UserError("The judge gave GPT-4's answers no points at all, so the relative score is undefined.")
    draws = bootstrap_sums(grades, [question.image_name for question in questions])
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = draws[:, 1] / draws[:, 0]
    return Score(float(ours / reference), len(questions), middle_95(ratios[np.isfinite(ratios)]))


BENCHMARK = Benchmark(
    protocol=lambda questions: PROTOCOL,
    max_new_tokens=1024,
    load_questions=load_questions,
    known=read_known,
    mark=mark,
    aggregate=aggregate,
    judge_inputs=judge_inputs,
)
