"""Read official files, JSON and JSON lines, with errors that name the place."""

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
    """Read a UTF-8 file, with or without a byte order mark.

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
    """Read a JSON file.

    Raises:
        UserError: no such file, or not JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}).") from None


def read_json_as(path: Path, kind: type[T], what: str) -> T:
    """Read a JSON file that must contain a non-empty list or dict.

    Args:
        path: the file.
        kind: list or dict.
        what: the expected file, for errors.

    Raises:
        UserError: no such file, not JSON, of another kind, or empty.
    """
    content = read_json(path)
    if not isinstance(content, kind) or not content:
        raise UserError(f"{path} must be {what}.")
    return content


def numbered_lines(content: str) -> list[tuple[int, str]]:
    """Return (number from 1, line) for every line that is not blank.

    Only line feeds end a line: `splitlines` would also split at U+2028 and others, which answers may contain.
    """
    return [(number, line) for number, line in enumerate(content.split("\n"), start=1) if line.strip()]


def parse_line(line: str, place: str) -> Record:
    """Parse one line of a JSON-lines file, an object. Errors name its `place`.

    Raises:
        UserError: not JSON, or not an object.
    """
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"{place} is not JSON ({error}).") from None
    if not isinstance(record, dict):
        raise UserError(f"{place} must be an object, not {line[:80]}.")
    return record


def read_lines(path: Path) -> list[tuple[str, Record]]:
    """Read a JSON-lines file of objects, each with its place ("FILE, line 3") for errors.

    Raises:
        UserError: no such file, empty, or a malformed line (its number is named).
    """
    lines = numbered_lines(read_text(path))
    if not lines:
        raise UserError(f"{path} is empty.")
    places = [(f"{path}, line {number}", line) for number, line in lines]
    return [(place, parse_line(line, place)) for place, line in places]


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON-lines file atomically."""
    write_text(path, "".join(to_json(record, path) + "\n" for record in records))


def field(record: Any, name: str, kind: type[T], place: str) -> T:
    """Return the value of a record's field. Errors name the `place` of the record.

    Raises:
        UserError: not a record, no such field, or a value of another type than `kind`.
    """
    if not isinstance(record, Mapping) or name not in record:
        raise UserError(f'{place}: "{name}" is missing. Is this the benchmark\'s official file?')
    value = record[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f'{place}: "{name}" must be of type {kind.__name__}, got {value!r:.80}.')
    return value


def question_id(record: Any, place: str) -> QuestionId:
    """Return a record's "question_id", a number or a string. Errors name the `place` of the record.

    Raises:
        UserError: missing, or of another type.
    """
    value = record.get("question_id") if isinstance(record, Mapping) else None
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise UserError(f'{place}: "question_id" is {value!r}, expected a number or a string.')
    return value


def require_unique(path: Path, ids: Iterable[object], naming: str, advice: str) -> None:
    """Raise UserError if two questions of a file have ids with the same text.

    Args:
        path: the file.
        ids: of its questions.
        naming: names an id in the sentence, as in "with the id {!r}".
        advice: what to do.
    """
    seen: set[str] = set()
    for one in ids:
        if str(one) in seen:
            raise UserError(f"{path} has two questions {naming.format(one)}. {advice}.")
        seen.add(str(one))


def require(path: Path | None, option: str, what: str) -> Path:
    """Return the path of an option that the benchmark needs.

    Args:
        path: the option's value.
        option: its name.
        what: the official file that it takes, for the error.

    Raises:
        UserError: the option is missing.
    """
    if path is None:
        raise UserError(f"This benchmark needs {option}: {what}.")
    return path


def official_file(annotations: Path | None, what: str, pattern: str) -> Path:
    """Return the file that --annotations names, or the only file matching `pattern` in the folder that it names.

    Args:
        annotations: the option's value.
        what: the official file that it takes, for errors.
        pattern: glob pattern.

    Raises:
        UserError: the option is missing, or the folder has no or several such files.
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
    """Return the annotation of each question.

    Args:
        questions: the questions.
        keys: the key of each question in `annotations`.
        annotations: all annotations of the file, by key.
        source: the annotations' file, for errors.

    Raises:
        UserError: a question without an annotation, or annotations of other questions: the score of a part would pass
            for the benchmark's.
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
