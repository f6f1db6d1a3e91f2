"""Atomic outputs: a file or directory is there whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparse_vlm.errors import UserError


def write_text(path: str | Path, text: str) -> None:
    """Writes `text` (UTF-8) to `path` through a temporary sibling, so that a crash leaves the old file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


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
        path: of the new directory.
        inputs: what it is made from; one that does not exist is no file's name (e.g. a model's on the hub).

    Raises:
        UserError: `path` is a file, the working directory or one above it, an input or a directory above one.
    """
    target = Path(path).resolve()
    if target.exists() and not target.is_dir():
        raise UserError(f"Cannot write the directory {path}: a file of that name exists. Choose another name.")
    if Path.cwd().is_relative_to(target):
        raise UserError(f"Cannot write the directory {path}: the working directory is there. Name a new directory.")
    for source in map(Path, inputs):
        if source.exists() and source.resolve().is_relative_to(target):
            raise UserError(f"The output {path} would replace the input {source}. Choose another name.")


@contextmanager
def new_directory(path: str | Path) -> Iterator[Path]:
    """Yields an empty temporary sibling of `path` that takes its place when the block succeeds.

    An existing directory is replaced where it is empty or an earlier result: each file of it is written anew. When the
    block raises, `path` is left as it was. Of a symbolic link the directory behind it is meant.

    Raises:
        UserError: see `check_output`; or a file in `path` would be lost.
    """
    check_output(path)
    target = Path(path).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    temporary.chmod(0o755)
    try:
        yield temporary
        if target.exists():
            _refuse_loss(target, temporary)
            old = temporary.with_name(f"{temporary.name}.old")
            os.replace(target, old)
            os.replace(temporary, target)
            shutil.rmtree(old)
        else:
            os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _refuse_loss(old: Path, new: Path) -> None:
    for file in sorted(old.rglob("*")):
        if not (new / file.relative_to(old)).exists():
            raise UserError(f"{old} is not replaced: {file.name} would be lost. Remove it, or choose another output.")
