"""The files of a score, and the part of a benchmark that it is of: all questions, the first ones, or the answered ones.

Questions that are scored together (MME's pairs, MMBench's rotations) stay together.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from eval.answers import Answer, answers_by_place, read_answers, require_answers
from eval.scoring.protocol import Benchmark, Question
from sparse_vlm.errors import UserError


@dataclass(frozen=True)
class Inputs:
    """What a score is made from.

    Attributes:
        answers: LLaVA's format, complete, of any model.
        questions: the official file; None: the benchmark's default, where it has one.
        annotations: the official file or folder; None: the questions' file, where it has the answers.
        no_image_answers: the same model's answers of `generate --no_image`.
        judgements: a judge's replies, where the benchmark has a judge, in the format of answers.
        limit: score the first questions alone (`first_questions`); None: all.
        part: score the answered questions alone, which may be a part of them.
    """

    answers: Path
    questions: Path | None = None
    annotations: Path | None = None
    no_image_answers: Path | None = None
    judgements: Path | None = None
    limit: int | None = None
    part: bool = False


class Part(NamedTuple):
    """What is scored of a benchmark.

    Attributes:
        questions: all of the benchmark.
        places: indices of those to score.
        texts: index -> answer, of these at least.
        lines: of the answers file.
    """

    questions: list[Question]
    places: list[int]
    texts: dict[int, str]
    lines: list[Answer]


def read_part(benchmark: Benchmark, inputs: Inputs) -> Part:
    """The questions and their answers.

    Raises:
        UserError: the answers do not fit the questions, or one of those to score has none.
    """
    asked = benchmark.load_questions(inputs.questions, None)
    lines = read_answers(inputs.answers)
    texts = answers_by_place(lines, asked, inputs.answers)
    places = first_questions(benchmark, asked, inputs.limit)
    if inputs.part:
        places = answered_questions(benchmark, asked, places, texts, inputs.answers)
    require_answers(texts, places, asked, inputs.answers)
    return Part(asked, places, texts, lines)


def first_questions(benchmark: Benchmark, questions: Sequence[Question], limit: int | None) -> list[int]:
    """Indices of the first `limit` questions, and of those that are scored together with one of them (MME's pairs,
    MMBench's rotations); None: of all.

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
    """Those of `places` that are answered.

    Raises:
        UserError: none is, or one is answered and another that is scored together with it is not.
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
                    "but one to a question that is scored together with it. Answer both or neither."
                )
    return part
