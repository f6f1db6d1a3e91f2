"""Read and write files. Outputs are atomic: a file or directory appears complete or not at all."""

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
    """Write `text` to `path` in UTF-8, atomically."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn an OSError of the block into a UserError that says why `path` cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror or error}.") from error


@contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which replaces it when the block succeeds.

    Symbolic links are followed. A device or pipe, such as /dev/stdout, cannot be replaced and is written in place.
    """
    with writing(path):
        target = Path(path).resolve() if Path(path).is_symlink() else Path(path)
        if target.exists() and not target.is_file() and not target.is_dir():
            yield target
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{os.getpid()}.{target.name}")  # matplotlib infers the format from the suffix
        try:
            yield temporary
            _follow_umask(temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are errors; see `to_json`."""
    write_text(path, to_json(value, path, indent=2) + "\n")


def to_json(value: Any, name: str | Path, indent: int | None = None) -> str:
    """Serialize `value` as JSON. NaN and infinity, which JSON cannot represent, are errors.

    Args:
        value: any JSON value.
        name: names the value in the error.
        indent: spaces per level; None: everything on one line.
    """
    try:
        return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        place = ".".join(_not_finite(value) or [])
        raise UserError(
            f"{name} is not written: {place or one_line(error)} is not a finite number, which JSON requires."
        ) from error


def _not_finite(value: Any) -> list[str] | None:
    """Return the keys that lead to the first number that is NaN or infinite, or None."""
    if isinstance(value, float):
        return None if math.isfinite(value) else []
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, inner in pairs:
        if (place := _not_finite(inner)) is not None:
            return [str(key), *place]
    return None


def read_json(file: str | Path) -> Any:
    """Read a JSON file, with or without a byte order mark."""
    try:
        return json.loads(Path(file).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid JSON: {error}.") from error


def read_object(file: str | Path) -> dict[str, Any]:
    """Read a JSON file that holds an object."""
    value = read_json(file)
    if not isinstance(value, dict):
        raise UserError(f"{file} must hold a JSON object, not a {type(value).__name__}.")
    return value


def check_output(path: str | Path, *inputs: str | Path) -> None:
    """Check that the directory `path` can be written and does not replace an input. Call this before long work.

    Args:
        path: the output directory.
        inputs: what the output is made from. Names that do not exist as files, such as a model's on the hub, are
            ignored.
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
    """Check that files can be created and replace neither each other nor an input. Call this before long work.

    Args:
        outputs: option, e.g. "--output" -> path; None: not requested.
        inputs: files and folders to read. None and paths that do not exist are ignored. An existing file inside an
            input folder counts as an input.
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
        raise UserError(f"Cannot write {name}: it is a directory. Add a file name.")
    if target.exists() and not target.is_file():
        return  # a device or a pipe
    folder = next(part for part in target.parents if part.exists())
    if not folder.is_dir():
        raise UserError(f"Cannot write {name}: {folder} is a file. Choose another name.")
    _create_something(folder)


def _create_something(folder: Path) -> None:
    """Raise OSError if nothing can be created in `folder`, or in the nearest parent that exists."""
    with tempfile.NamedTemporaryFile(dir=next(part for part in (folder, *folder.parents) if part.exists())):
        pass


@contextmanager
def new_directory(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary directory beside `path`, which replaces it when the block succeeds.

    If the block writes every file of an existing `path` again, the directory is replaced as a whole. Otherwise the new
    files are moved into it one by one, config.json last, and its other files stay. Weights among those are an error,
    because they would be loaded as part of the result. If the block raises, `path` is unchanged. Symbolic links are
    followed.
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
    """Exchange two directories of one file system atomically.

    Without support by the system (only Linux has it) or the file system (NFS has not), this takes three renames,
    between which `second` briefly does not exist.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    at_working_directory, rename_exchange = -100, 2  # from fcntl.h and linux/fs.h
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
            raise UserError(f"{old} holds {name}: it would be loaded as part of the result. Choose another output.")
    if there <= names and not Path.cwd().is_relative_to(old):
        exchange(new, old)
        shutil.rmtree(new)
        return
    for name in sorted(names, key=lambda name: name.name == "config.json"):
        (old / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(new / name, old / name)
