"""Official files, JSON and JSON lines, read with errors that name the place."""

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from eval.scoring.protocol import Question, QuestionId
from sparse_vlm.errors import UserError
from sparse_vlm.files import to_json, write_text

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
Record = dict[str, Any]


def read_text(path: Path) -> str:
    """A UTF-8 file, with or without a byte order mark.

    Raises:
        UserError: no such file, or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}).") from None


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        UserError: no such file, or not JSON.
    """
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}).") from None


def read_json_as(path: Path, kind: type[T], what: str) -> T:
    """A JSON file of one kind, list or dict, with something in it.

    Raises:
        UserError: no such file, not JSON, of another kind, or empty; `what` says which file is expected.
    """
    content = read_json(path)
    if not isinstance(content, kind) or not content:
        raise UserError(f"{path} must be {what}.")
    return content


def numbered_lines(content: str) -> list[tuple[int, str]]:
    """(number from 1, line) of every line that is not blank.

    Lines end at line feeds alone: `splitlines` would cut at U+2028 and others, which answers may contain.
    """
    return [(number, line) for number, line in enumerate(content.split("\n"), start=1) if line.strip()]


def parse_line(line: str, place: str) -> Record:
    """One line of a JSON-lines file, an object.

    Raises:
        UserError: not JSON, or no object; `place` says where.
    """
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"{place} is not JSON ({error}).") from None
    if not isinstance(record, dict):
        raise UserError(f"{place} must be an object, not {line[:80]}.")
    return record


def read_lines(path: Path) -> list[tuple[str, Record]]:
    """A JSON-lines file of objects, each with its place ("FILE, line 3") for errors.

    Raises:
        UserError: no such file, empty, or a malformed line (its number is named).
    """
    lines = numbered_lines(read_text(path))
    if not lines:
        raise UserError(f"{path} is empty.")
    places = [(f"{path}, line {number}", line) for number, line in lines]
    return [(place, parse_line(line, place)) for place, line in places]


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes a JSON-lines file, atomically."""
    write_text(path, "".join(to_json(record, path) + "\n" for record in records))


def field(record: Any, name: str, kind: type[T], place: str) -> T:
    """The value of a record's field.

    Raises:
        UserError: no record, no such field, or of another type than `kind`; `place` says where.
    """
    if not isinstance(record, Mapping) or name not in record:
        raise UserError(f'{place}: "{name}" is missing. Is this the benchmark\'s official file?')
    value = record[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f'{place}: "{name}" must be of type {kind.__name__}, got {value!r:.80}.')
    return value


def question_id(record: Any, place: str) -> QuestionId:
    """A record's "question_id", a number or a string.

    Raises:
        UserError: it is neither, or missing; `place` says where.
    """
    value = record.get("question_id") if isinstance(record, Mapping) else None
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise UserError(f'{place}: "question_id" is {value!r}, expected a number or a string.')
    return value


def require(path: Path | None, option: str, what: str) -> Path:
    """The path of an option that a benchmark cannot do without.

    Raises:
        UserError: it was not given; `what` says which official file it takes.
    """
    if path is None:
        raise UserError(f"This benchmark needs {option}: {what}.")
    return path


def official_file(annotations: Path | None, what: str, pattern: str) -> Path:
    """The file that --annotations names, or in the folder that it names the one file of that `pattern`.

    Raises:
        UserError: it was not given (`what` says which official file it takes), or the folder has none or several.
    """
    path = require(annotations, "--annotations", what)
    if not path.is_dir():
        return path
    found = sorted(path.glob(pattern))
    if len(found) != 1:
        names = f": {', '.join(file.name for file in found)}" if found else ""
        raise UserError(f"The folder {path} has {len(found)} files {pattern}{names}. Give {what}.")
    return found[0]


def align(questions: Sequence[Question], keys: Iterable[K], annotations: Mapping[K, T], source: Path) -> list[T]:
    """The annotation of each question.

    Args:
        questions: what was asked.
        keys: of each question, in `annotations`.
        annotations: by key, all of the file.
        source: the annotations' file, for messages.

    Raises:
        UserError: a question without annotation, or annotations of questions that were not asked: a score over a part
            would pass for the benchmark's.
    """
    keys = list(keys)
    missing = [question for question, key in zip(questions, keys, strict=True) if key not in annotations]
    if missing:
        raise UserError(
            f"{source} has no annotation for question id {missing[0].id!r}, {_short(missing[0].text)!r} "
            f"({len(missing)} of {len(questions)} questions). Give the annotations of these questions."
        )
    left_over = annotations.keys() - set(keys)
    if left_over:
        example = next(key for key in annotations if key in left_over)
        raise UserError(
            f"{source} annotates {len(left_over)} questions that were not asked, e.g. {example!r}. "
            "Give the question file that belongs to it; to score a part of it, --part."
        )
    return [annotations[key] for key in keys]


def _short(text: str) -> str:
    line = text.split("\n")[0]
    return line if len(line) <= 80 else f"{line[:80]} …"
