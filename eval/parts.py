"""The input files of a score, and the scored part of a benchmark: all questions, the first or the answered ones.

Questions that are scored together (MME's pairs, MMBench's rotations) stay together.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from eval.answers import Answer, answers_by_place, require_answers
from eval.lmms_log import read_answers_or_log
from eval.scoring.protocol import Benchmark, Question
from sparse_vlm.errors import UserError


@dataclass(frozen=True)
class Inputs:
    """The input files of a score, and which questions to score.

    Attributes:
        answers: complete answers of any model in LLaVA's format, or a log of lmms-eval.
        questions: the official file; None: the benchmark's default, if it has one.
        annotations: the official file or folder; None: the question file, if it has the answers.
        no_image_answers: the same model's answers of `generate --no_image`.
        judgements: a judge's replies in the format of answers, if the benchmark has a judge.
        limit: score only the first questions (`first_questions`); None: all.
        part: score only the answered questions.
    """

    answers: Path
    questions: Path | None = None
    annotations: Path | None = None
    no_image_answers: Path | None = None
    judgements: Path | None = None
    limit: int | None = None
    part: bool = False


class Part(NamedTuple):
    """The questions to score of a benchmark, with their answers.

    Attributes:
        questions: all questions of the benchmark.
        places: indices of the questions to score.
        texts: index -> answer, at least for the questions to score.
        lines: the lines of the answers file.
    """

    questions: list[Question]
    places: list[int]
    texts: dict[int, str]
    lines: list[Answer]


def read_part(benchmark: Benchmark, inputs: Inputs) -> Part:
    """Read the questions and their answers.

    Raises:
        UserError: the answers do not belong to the questions, or a question to score has none.
    """
    asked = benchmark.load_questions(inputs.questions, None)
    lines = read_answers_or_log(inputs.answers, asked)
    texts = answers_by_place(lines, asked, inputs.answers)
    places = first_questions(benchmark, asked, inputs.limit)
    if inputs.part:
        places = answered_questions(benchmark, asked, places, texts, inputs.answers)
    require_answers(texts, places, asked, inputs.answers)
    return Part(asked, places, texts, lines)


def first_questions(benchmark: Benchmark, questions: Sequence[Question], limit: int | None) -> list[int]:
    """Return the indices of the first `limit` questions (None: all) and of those scored together with one of them.

    Raises:
        UserError: `limit` is less than 1.
    """
    if limit is None:
        return list(range(len(questions)))
    if limit < 1:
        raise UserError(f"--limit must be 1 or more, got {limit}.")
    if benchmark.unit is None:
        return list(range(min(limit, len(questions))))
    units = {benchmark.unit(question) for question in questions[:limit]}
    return [place for place, question in enumerate(questions) if benchmark.unit(question) in units]


def answered_questions(
    benchmark: Benchmark, questions: Sequence[Question], places: Sequence[int], answered: Collection[int], path: Path
) -> list[int]:
    """Return those of `places` that are answered.

    Raises:
        UserError: no question is answered, or only some of those that are scored together.
    """
    part = [place for place in places if place in answered]
    if not part:
        raise UserError(f"{path} answers none of the {len(places)} questions.")
    if benchmark.unit is not None:
        units = {benchmark.unit(questions[place]) for place in part}
        for place in places:
            if place not in answered and benchmark.unit(questions[place]) in units:
                raise UserError(
                    f"{path} has no answer to question id {questions[place].id!r}, {questions[place].text!r:.80}, "
                    "but has one to a question that is scored together with it. Answer both or neither."
                )
    return part
