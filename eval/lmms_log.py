"""Answers in lmms-eval's logs (`--log_samples`): one JSON object per line with "doc_id", "input", "filtered_resps".

A log does not have the documents of its task. The question of a line is found by the id that many tasks repeat in
their metrics, or else by its position "doc_id" in the benchmark's file, if the words of all questions agree.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.answers import Answer, answer_in
from eval.scoring.protocol import Question
from eval.scoring.records import Record, field, numbered_lines, parse_line, read_text
from sparse_vlm.errors import UserError

ID_FIELDS = ("question_id", "index", "image")  # of MMBench: "index"; of VizWiz: "image"


def read_answers_or_log(path: Path, questions: Sequence[Question]) -> list[Answer]:
    """Read an answers file of any model, or a log of lmms-eval's answers to the benchmark's questions.

    Raises:
        UserError: no such file, a malformed line, or a log of other questions.
    """
    numbered = [(f"{path}, line {number}", line) for number, line in numbered_lines(read_text(path))]
    lines = [(place, parse_line(line, place)) for place, line in numbered]
    if lines and "doc_id" in lines[0][1] and "text" not in lines[0][1]:
        return _answers_in_log(lines, questions)
    return [answer_in(record, place) for place, record in lines]


def _answers_in_log(lines: Sequence[tuple[str, Record]], questions: Sequence[Question]) -> list[Answer]:
    ids = [_id_in_metrics(record) for _, record in lines]
    known = {str(question.id) for question in questions}
    if all(id_ is not None and str(id_) in known for id_ in ids):
        return [
            Answer(id_, field(record, "input", str, place), _text(record, place), "")
            for id_, (place, record) in zip(ids, lines, strict=True)
            if id_ is not None
        ]
    return [_answer_at_position(record, questions, place) for place, record in lines]


def _id_in_metrics(record: Record) -> int | str | None:
    """Return the id of the question in the metrics of a line, if there is one."""
    metrics = [value for value in record.values() if isinstance(value, Mapping)]
    found = (metric[name] for name in ID_FIELDS for metric in metrics if name in metric)
    id_ = next(found, None)
    return id_ if isinstance(id_, int | str) and not isinstance(id_, bool) else None


def _answer_at_position(record: Record, questions: Sequence[Question], place: str) -> Answer:
    position, asked = field(record, "doc_id", int, place), field(record, "input", str, place)
    if not 0 <= position < len(questions):
        raise UserError(
            f'{place}: "doc_id" is {position}, but the benchmark has {len(questions)} questions. Give the question '
            "file with the questions of lmms-eval's task."
        )
    question = questions[position]
    words = question.text.split("\n")[0].strip()
    if words.casefold() not in asked.casefold():
        raise UserError(
            f"{place} asks {asked!r:.120}, but question {position} of the benchmark is {words!r:.120}. Give the "
            "question file whose questions and order are those of lmms-eval's task."
        )
    return Answer(question.id, question.text, _text(record, place), "")


def _text(record: Record, place: str) -> str:
    """Return the answer of a line, which several versions of lmms-eval put into lists."""
    answer: Any = record.get("filtered_resps")
    while isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    if isinstance(answer, list):
        raise UserError(f"{place} has {len(answer)} answers, but one can be scored: run lmms-eval without repeats.")
    if not isinstance(answer, str):
        raise UserError(f'{place}: "filtered_resps" is {answer!r:.80}, expected an answer.')
    return answer
