"""The image files below a folder, and compact tables of many paths."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from sparse_vlm.errors import UserError
from sparse_vlm.image_files import readable_suffixes

logger = logging.getLogger(__name__)
# Folders that macOS, Synology and Windows create beside users' data.
SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"})
HIDDEN = "hidden"


class StringTable(Sequence[str]):
    """Many strings in one block of memory.

    Forked data workers share the block. They would copy a list of strings, because reading a Python object changes its
    reference count.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        encoded = [os.fsencode(string) for string in strings]
        self._block = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # int -> str, slice -> list[str]
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        return os.fsdecode(self._block[self._ends[place] : self._ends[place + 1]])


class PathTable(Sequence[Path]):
    """Many paths in one block of memory; see `StringTable`."""

    def __init__(self, paths: Iterable[str | Path]) -> None:
        self._names = StringTable(map(str, paths))

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return [*map(Path, self._names[index])] if isinstance(index, slice) else Path(self._names[index])


def image_paths(folder: str | Path) -> list[Path]:
    """Return the sorted image files below a folder.

    Symbolic links are followed. Hidden files and folders and files that PIL cannot read are ignored and counted in the
    log. A folder without images is an error.
    """
    ignored: Counter[str] = Counter()
    paths = _image_paths(Path(folder), ignored)
    _log_ignored(Path(folder), ignored)
    return paths


def paths_by_class(folder: str | Path) -> dict[str, list[Path]]:
    """Return the sorted image files below each subfolder, by its name. Ignores and logs the same as `image_paths`."""
    folder, ignored = Path(folder), Counter[str]()
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder} with a folder of images per class.")
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    ignored[HIDDEN] = sum(map(is_hidden, classes))
    found = {name: _image_paths(folder / name, ignored) for name in classes if not is_hidden(name)}
    _log_ignored(folder, ignored)
    return found


def _image_paths(folder: Path, ignored: Counter[str]) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"There is no image folder {folder}.")
    suffixes, before, paths = readable_suffixes(), ignored.copy(), []
    try:
        for path in _files_below(folder, ignored):
            if path.suffix.lower() in suffixes:
                paths.append(path)
            else:
                ignored[path.suffix.lower()] += 1
    except OSError as error:
        raise UserError(f"The folder {error.filename} cannot be read: {error.strerror}.") from None
    if not paths:
        others = _summary(ignored - before)
        raise UserError(f"The folder {folder} holds no image files{f', but {others}' if others else ''}.")
    return sorted(paths)


def _files_below(folder: Path, ignored: Counter[str], above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Iterate over the files that are not hidden. Links back to one of the folders `above` are not followed."""
    here = folder.resolve()
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                ignored[HIDDEN] += 1
            elif entry.is_dir():
                yield from _files_below(Path(entry.path), ignored, (*above, here))
            else:
                yield Path(entry.path)


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden or belongs to the operating system."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def _log_ignored(folder: Path, ignored: Counter[str]) -> None:
    if others := _summary(ignored):
        logger.warning("Ignored in %s: %s.", folder, others)


def _summary(ignored: Counter[str]) -> str:
    """Summarize counts, largest first, as "1,600 hidden, 3 .h5, 1 without a suffix"."""
    kinds = sorted((-count, kind) for kind, count in ignored.items() if count)
    return ", ".join(f"{-count:,} {kind or 'without a suffix'}" for count, kind in kinds)
