"""Atomic outputs: a file or directory is there whole or not at all."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparse_vlm.errors import UserError, one_line


def write_text(path: str | Path, text: str) -> None:
    """Writes `text` (UTF-8) to `path` through a temporary sibling, so that a crash leaves the old file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically.

    Raises:
        UserError: it holds NaN or an infinite number, which JSON has not.
    """
    write_text(path, to_json(value, path, indent=2) + "\n")


def to_json(value: Any, name: str | Path, indent: int | None = None) -> str:
    """`value` as JSON in UTF-8; `name` stands for it in the error.

    Raises:
        UserError: it holds NaN or an infinite number, which JSON has not.
    """
    try:
        return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        place = ".".join(_not_finite(value) or [])
        raise UserError(
            f"{name} is not written: {place or one_line(error)} is not a finite number, and JSON has no other."
        ) from error


def _not_finite(value: Any) -> list[str] | None:
    """The keys that lead to the first number that is NaN or infinite; None: there is none."""
    if isinstance(value, float):
        return None if math.isfinite(value) else []
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, inner in pairs:
        if (place := _not_finite(inner)) is not None:
            return [str(key), *place]
    return None


def read_object(file: str | Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UserError: the file cannot be read, is no JSON, or holds another JSON value.
    """
    try:
        value = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{file} is no valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} holds no JSON object but a {type(value).__name__}.")
    return value


def check_output(path: str | Path, *inputs: str | Path) -> None:
    """Whether a directory may be written to `path`; for what takes long, before it begins.

    Args:
        path: of the directory.
        inputs: what it is made from; one that does not exist is no file's name (e.g. a model's on the hub).

    Raises:
        UserError: `path` or a part of it is a file, or it is an input or a directory above one.
    """
    target = Path(path).resolve()
    for part in (target, *target.parents):
        if part.exists() and not part.is_dir():
            raise UserError(f"Cannot write the directory {path}: {part} is a file. Choose another name.")
    for source in map(Path, inputs):
        if source.exists() and source.resolve().is_relative_to(target):
            raise UserError(f"The output {path} would replace the input {source}. Choose another name.")


@contextmanager
def new_directory(path: str | Path) -> Iterator[Path]:
    """Yields an empty temporary sibling of `path`, which takes its place when the block succeeds.

    An existing directory of which each file is written anew is replaced as a whole. In another one the files take
    their places one by one, config.json last, and what else is there stays. When the block raises, `path` is left as it
    was. Of a symbolic link the directory behind it is meant.

    Raises:
        UserError: `path` is a file; or it holds weights that would be taken for a part of the result.
    """
    check_output(path)
    target = Path(path).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    temporary.chmod(0o755)
    try:
        yield temporary
        if target.exists():
            _take_places(temporary, target)
        else:
            os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take_places(new: Path, old: Path) -> None:
    names, there = ({file.relative_to(folder) for file in folder.rglob("*") if file.is_file()} for folder in (new, old))
    for name in sorted(there - names):
        if name.match("*.safetensors") and name.parent == Path():
            raise UserError(f"{old} holds {name}: it would be taken for a part of the result. Choose another output.")
    if there <= names and not Path.cwd().is_relative_to(old):
        away = new.with_name(f"{new.name}.old")
        os.replace(old, away)
        os.replace(new, old)
        shutil.rmtree(away)
        return
    for name in sorted(names, key=lambda name: name.name == "config.json"):
        (old / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(new / name, old / name)
