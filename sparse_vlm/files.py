"""Atomic outputs: a file or directory is there whole or not at all."""

import ctypes
import errno
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparse_vlm.errors import UserError, one_line


def write_text(path: str | Path, text: str) -> None:
    """Writes `text` (UTF-8) to `path`, atomically.

    Raises:
        UserError: `path` cannot be written, e.g. because the disk is full.
    """
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """For a block that writes: an OSError becomes a UserError that says what could not be written, and why."""
    try:
        yield
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror or error}.") from error


@contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """Yields the name of a temporary sibling of `path`, which takes its place when the block succeeds.

    Symbolic links are followed. A device or pipe such as /dev/stdout cannot be replaced; it is written in place.

    Raises:
        UserError: the file cannot be written, e.g. because the disk is full.
    """
    with writing(path):
        target = Path(path).resolve() if Path(path).is_symlink() else Path(path)
        if target.exists() and not target.is_file() and not target.is_dir():
            yield target
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{os.getpid()}.{target.name}")  # the ending chooses the format of a figure
        try:
            yield temporary
            _follow_umask(temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


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
        value = json.loads(Path(file).read_text(encoding="utf-8-sig"))
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
        UserError: `path` or a part of it is a file, it is an input or a directory above one, or cannot be created.
    """
    target = Path(path).resolve()
    for part in (target, *target.parents):
        if part.exists() and not part.is_dir():
            raise UserError(f"Cannot write the directory {path}: {part} is a file. Choose another name.")
    for source in map(Path, inputs):
        if source.exists() and source.resolve().is_relative_to(target):
            raise UserError(f"The output {path} would replace the input {source}. Choose another name.")
    with writing(path):
        _create_something(target.parent)


def check_output_files(outputs: Mapping[str, str | Path | None], inputs: Iterable[str | Path | None] = ()) -> None:
    """Check that files can be written, before long work: each can be created, and none replaces another or an input.

    Args:
        outputs: what a file is called, e.g. "--output" -> its path; None: it is not wanted.
        inputs: files and folders that are read; None or one that does not exist is not a file. An existing file inside
            an input folder is taken for an input.

    Raises:
        UserError: one cannot be written, or would replace another output or an input.
    """
    sources = [Path(source).resolve() for source in inputs if source is not None and Path(source).exists()]
    names: dict[Path, str] = {}
    for name, output in outputs.items():
        if output is None:
            continue
        with writing(f"{name} {output}"):
            target = Path(output).resolve()
            if target in names:
                raise UserError(f"{names[target]} and {name} are the same file, {output}. Choose another name.")
            names[target] = name
            for source in sources:
                inside = source.is_dir() and target.is_file() and target.is_relative_to(source)
                if target == source or inside:
                    raise UserError(f"{name} would replace the input {output}. Choose another name.")
            _check_creatable(target, f"{name} {output}")


def _check_creatable(target: Path, name: str) -> None:
    if target.is_dir():
        raise UserError(f"Cannot write {name}: it is a directory. Add the name of a file.")
    if target.exists() and not target.is_file():
        return  # a device or pipe
    folder = next(part for part in target.parents if part.exists())
    if not folder.is_dir():
        raise UserError(f"Cannot write {name}: {folder} is a file. Choose another name.")
    _create_something(folder)


def _create_something(folder: Path) -> None:
    """Raises OSError where nothing can be created in a folder, or, where there is none, in the next one above it."""
    with tempfile.NamedTemporaryFile(dir=next(part for part in (folder, *folder.parents) if part.exists())):
        pass


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
    try:
        yield temporary
        _follow_umask(temporary)
        if target.exists():
            _take_places(temporary, target)
        else:
            os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _follow_umask(path: Path) -> None:
    """Grant the permissions that the umask allows new files: libraries that write through tempfile leave them out."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        (probe := Path(folder, "probe")).mkdir()
        allowed = stat.S_IMODE(probe.stat().st_mode)
    for part in (path, *path.rglob("*")):
        if part.is_symlink():
            continue
        mode = stat.S_IMODE(part.stat().st_mode)
        part.chmod(mode | (allowed if part.is_dir() else allowed & 0o666))


def exchange(first: Path, second: Path) -> None:
    """Exchange two directories of one file system in one step, so that both names always exist.

    Where the system or the file system cannot do that (other than Linux, NFS), it takes three renames, and for a
    moment `second` does not exist.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    at_working_directory, rename_exchange = -100, 2  # of fcntl.h and linux/fs.h
    if renameat2 is not None:
        names = os.fsencode(first), os.fsencode(second)
        if not renameat2(at_working_directory, names[0], at_working_directory, names[1], rename_exchange):
            return
        if ctypes.get_errno() not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(second))
    away = first.with_name(f"{first.name}.old")
    os.replace(second, away)
    os.replace(first, second)
    os.replace(away, first)


def _take_places(new: Path, old: Path) -> None:
    names, there = ({file.relative_to(folder) for file in folder.rglob("*") if file.is_file()} for folder in (new, old))
    for name in sorted(there - names):
        if name.match("*.safetensors") and name.parent == Path():
            raise UserError(f"{old} holds {name}: it would be taken for a part of the result. Choose another output.")
    if there <= names and not Path.cwd().is_relative_to(old):
        exchange(new, old)
        shutil.rmtree(new)
        return
    for name in sorted(names, key=lambda name: name.name == "config.json"):
        (old / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(new / name, old / name)
