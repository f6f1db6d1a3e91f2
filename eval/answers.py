"""Answers in LLaVA's format: one JSON object per line with at least "question_id" and "text"."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.scoring.protocol import Question, QuestionId
from eval.scoring.records import Record, numbered_lines, parse_line, read_text
from sparse_vlm.errors import UserError

Key = tuple[str, str]  # identifies a question, see Places


@dataclass(frozen=True)
class Answer:
    """One line: the answer of `model_id` to `prompt`, under the conditions in `metadata`."""

    question_id: QuestionId
    prompt: str
    text: str
    model_id: str
    metadata: dict[str, Any] = field(default_factory=dict)


def read_answers(path: Path) -> list[Answer]:
    """Read an answers file of any model. "prompt", "model_id" and "metadata" may be absent.

    Raises:
        UserError: no such file, or a malformed line (its number is named).
    """
    return [parse_answer(line, f"{path}, line {number}") for number, line in numbered_lines(read_text(path))]


def parse_answer(line: str, place: str) -> Answer:
    """Parse one line of an answers file. Errors name its `place`.

    Raises:
        UserError: malformed line.
    """
    return answer_in(parse_line(line, place), place)


def read_judgements(path: Path) -> list[Answer]:
    """Read a judge's replies: an answers file, or LLaVA's reviews, whose replies are their "content".

    Raises:
        UserError: no such file, or a malformed line (its number is named).
    """
    lines = ((f"{path}, line {number}", line) for number, line in numbered_lines(read_text(path)))
    records = ((place, parse_line(line, place)) for place, line in lines)
    return [
        answer_in({"text": record["content"]} | record if "content" in record else record, place)
        for place, record in records
    ]


def answer_in(record: Record, place: str) -> Answer:
    """Return the answer in one line of an answers file. Errors name its `place`.

    Raises:
        UserError: a field is missing, or of another type.
    """
    types: dict[str, type | tuple[type, ...]] = {
        "question_id": (int, str), "prompt": str, "text": str, "model_id": str, "metadata": dict
    }  # fmt: skip
    values = {"prompt": "", "model_id": "", "metadata": {}} | {key: record[key] for key in types if key in record}
    for key, kind in types.items():
        if not isinstance(values.get(key), kind) or isinstance(values.get(key), bool):
            raise UserError(f'{place}: "{key}" is {"missing" if key not in values else repr(values[key])}.')
    return Answer(**values)


class Places:
    """Find the question that an answer belongs to.

    The id decides, written as a number or a string. If several questions share an id (those of TextVQA and MME are the
    image's), the first line of the prompt decides too; the lines after it are hints and instructions. Equal questions
    about the same image take their answers in order.
    """

    def __init__(self, questions: Sequence[Question]) -> None:
        self._ids = [str(question.id) for question in questions]
        self._shared = {id_ for id_, count in Counter(self._ids).items() if count > 1}
        self._places: dict[Key, list[int]] = defaultdict(list)
        for index, question in enumerate(questions):
            self._places[self._key(question.id, question.text)].append(index)

    def _key(self, id_: QuestionId, prompt: str) -> Key:
        words = prompt.replace("<image>", "").strip() if str(id_) in self._shared else ""
        return str(id_), words.split("\n")[0].strip()

    def find(self, answers: Sequence[Answer], path: Path, seen: Counter[Key] | None = None) -> list[int]:
        """Return the index of each answer's question, all different.

        Args:
            answers: the answers of a file, or the next ones.
            path: the file, for errors.
            seen: number of the file's previous answers per key; updated in place.

        Raises:
            UserError: unknown or duplicate answers; the message names the first and their number.
        """
        seen = Counter() if seen is None else seen
        if not seen and self._in_order(answers):
            return list(range(len(answers)))
        keys = [self._key(answer.question_id, answer.prompt) for answer in answers]
        unknown = [answer for answer, key in zip(answers, keys, strict=True) if key not in self._places]
        if unknown and str(unknown[0].question_id) in self._shared:
            raise UserError(
                f"{path}: several questions have the id {unknown[0].question_id!r}, and the prompt "
                f"{unknown[0].prompt!r:.120} is none of them ({len(unknown)} such answers in all)."
            )
        _reject("is not among the benchmark's questions", [answer.question_id for answer in unknown], path)
        indices, surplus = [], []
        for answer, key in zip(answers, keys, strict=True):
            if seen[key] < len(self._places[key]):
                indices.append(self._places[key][seen[key]])
            else:
                surplus.append(answer.question_id)
            seen[key] += 1
        _reject("is answered more than once", list(dict.fromkeys(surplus)), path)
        return indices

    def _in_order(self, answers: Sequence[Answer]) -> bool:
        """Return whether answers without prompts to questions that share ids are complete and in order."""
        return (
            bool(self._shared)
            and not any(answer.prompt for answer in answers)
            and [str(answer.question_id) for answer in answers] == self._ids
        )


def answers_by_place(answers: Sequence[Answer], questions: Sequence[Question], path: Path) -> dict[int, str]:
    """Return the answer to each answered question, by the question's index.

    Raises:
        UserError: duplicate or unknown question ids; the message names the first and their number.
    """
    return dict(zip(Places(questions).find(answers, path), [answer.text for answer in answers], strict=True))


def require_answers(texts: Mapping[int, str], places: Sequence[int], questions: Sequence[Question], path: Path) -> None:
    """Check that all questions at `places` are answered.

    Raises:
        UserError: some are not; the message names the first and their number.
    """
    missing = [questions[place].id for place in places if place not in texts]
    if missing and len(missing) < len(places):
        raise UserError(
            f"{path}: question id {missing[0]!r} has no answer ({len(missing)} such ids in all). Answer them, or score "
            "the rest with --part."
        )
    _reject("has no answer", missing, path)


def match_answers(answers: Sequence[Answer], questions: Sequence[Question], path: Path) -> list[str]:
    """Return the answer to each question, provided that every question has exactly one.

    Raises:
        UserError: duplicate, unknown or missing question ids; the message names the first and their number.
    """
    texts = answers_by_place(answers, questions, path)
    require_answers(texts, range(len(questions)), questions, path)
    return [texts[index] for index in range(len(questions))]


def _reject(fault: str, ids: Sequence[QuestionId], path: Path) -> None:
    if ids:
        raise UserError(f"{path}: question id {ids[0]!r} {fault} ({len(ids)} such ids in all).")
