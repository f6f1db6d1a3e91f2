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


@contextmanager
def new_directory(path: str | Path) -> Iterator[Path]:
    """Yields an empty temporary sibling of `path` that takes its place when the block succeeds.

    An existing directory at `path` is replaced. When the block raises, `path` is left as it was.

    Raises:
        UserError: `path` exists and is no directory.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"Cannot write the directory {path}: a file of that name exists. Choose another name.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    temporary.chmod(0o755)
    try:
        yield temporary
        if path.exists():
            old = temporary.with_name(f"{temporary.name}.old")
            os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
