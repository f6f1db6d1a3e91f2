"""Answers on disk, in LLaVA's format: one JSON object a line with at least "question_id" and "text"."""

import fcntl
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from eval.protocol import Question, QuestionId
from sparse_vlm.errors import UserError


@dataclass(frozen=True)
class Answer:
    """One line: what `model_id` answered to `prompt`. `metadata` says under which conditions."""

    question_id: QuestionId
    prompt: str
    text: str
    model_id: str
    metadata: dict[str, Any] = field(default_factory=dict)


def read_answers(path: Path) -> list[Answer]:
    """Reads an answers file of any model. "prompt", "model_id" and "metadata" may be absent.

    Raises:
        UserError: no such file, or a malformed line (its number is named).
    """
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"Cannot read the answers {path}: {error.strerror}.") from None
    lines = content.removesuffix("\n").split("\n") if content else []  # splitlines would cut at U+2028 too
    return [_parse(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def _parse(line: str, place: str) -> Answer:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"{place} is not JSON ({error}).") from None
    if not isinstance(record, dict):
        raise UserError(f'{place} must be an object with "question_id" and "text", not {record!r}.')
    types: dict[str, type | tuple[type, ...]] = {
        "question_id": (int, str), "prompt": str, "text": str, "model_id": str, "metadata": dict
    }  # fmt: skip
    values = {"prompt": "", "model_id": "", "metadata": {}} | {key: record[key] for key in types if key in record}
    for key, kind in types.items():
        if not isinstance(values.get(key), kind):
            raise UserError(f'{place}: "{key}" is {"missing" if key not in values else repr(values[key])}.')
    return Answer(**values)


def match_answers(answers: Sequence[Answer], questions: Sequence[Question], path: Path) -> dict[QuestionId, str]:
    """question id -> answered text, if there is exactly one answer to every question.

    Raises:
        UserError: duplicate, unknown or missing question ids; the sentence names the first and says how many.
    """
    _check_ids(answers, questions, path)
    texts = {answer.question_id: answer.text for answer in answers}
    _reject("has no answer", [question.id for question in questions if question.id not in texts], path)
    return texts


def _check_ids(answers: Sequence[Answer], questions: Sequence[Question], path: Path) -> None:
    asked = {question.id for question in questions}
    counts = Counter(answer.question_id for answer in answers)
    _reject("is answered more than once", [id_ for id_, count in counts.items() if count > 1], path)
    _reject("is not among the benchmark's questions", [id_ for id_ in counts if id_ not in asked], path)


def _reject(fault: str, ids: Sequence[QuestionId], path: Path) -> None:
    if ids:
        raise UserError(f"{path}: question id {ids[0]!r} {fault} ({len(ids)} such ids in all).")


class AnswerLog:
    """An answers file being written. `done` holds the question ids that it has."""

    def __init__(self, file: IO[str], answers: Iterable[Answer]) -> None:
        self._file = file
        self.done = {answer.question_id for answer in answers}

    def append(self, answers: Sequence[Answer]) -> None:
        """Adds the lines and hands them to the system, so that they survive the death of this process."""
        self._file.write("".join(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers))
        self._file.flush()
        self.done.update(answer.question_id for answer in answers)


@contextmanager
def open_log(path: Path, questions: Sequence[Question], model_id: str, metadata: dict[str, Any]) -> Iterator[AnswerLog]:
    """Opens an answers file to go on where it was left, or a new one. A last line that was cut off is dropped.

    Raises:
        UserError: another process is writing it; a malformed, duplicate or unknown line; answers of another model
            or under other conditions than `model_id` and `metadata` say.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"Another process is writing {path}. Wait for it or choose another file.") from None
        _drop_torn_line(path)
        answers = read_answers(path)
        _check_ids(answers, questions, path)
        for answer in answers:
            if (answer.model_id, answer.metadata) != (model_id, metadata):
                raise UserError(
                    f"{path} holds answers of {answer.model_id} {answer.metadata}, now asked is {model_id} {metadata}. "
                    "Delete the file to start afresh, or choose another one."
                )
        yield AnswerLog(file, answers)


def _drop_torn_line(path: Path) -> None:
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        print(f"{path}: the last line was cut off and is dropped; its question is asked again.")
        with path.open("r+b") as file:
            file.truncate(whole)
