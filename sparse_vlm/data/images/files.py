"""Which files below a folder are images, and a table of many paths that data workers share."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from sparse_vlm.errors import UserError
from sparse_vlm.image_files import readable_endings

logger = logging.getLogger(__name__)
# What systems leave beside or in people's data: archives of macOS, previews of Synology's, wastebaskets of Windows.
OF_SYSTEMS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"})
HIDDEN = "hidden"


class StringTable(Sequence[str]):
    """Many strings in one block of memory.

    A data worker that is forked gets a copy of every Python object that it looks at, merely by counting references.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        encoded = [os.fsencode(string) for string in strings]
        self._block = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # int -> str, slice -> list[str], as of a Sequence
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        return os.fsdecode(self._block[self._ends[place] : self._ends[place + 1]])


class PathTable(Sequence[Path]):
    """The same of paths."""

    def __init__(self, paths: Iterable[str | Path]) -> None:
        self._names = StringTable(map(str, paths))

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return [*map(Path, self._names[index])] if isinstance(index, slice) else Path(self._names[index])


def image_paths(folder: str | Path) -> list[Path]:
    """The image files below a folder, also behind links to other folders, sorted. The log counts what is left out.

    Raises:
        UserError: the folder is missing or holds none; one below it cannot be listed.
    """
    left_out: Counter[str] = Counter()
    paths = _image_paths(Path(folder), left_out)
    _say(Path(folder), left_out)
    return paths


def paths_by_class(folder: str | Path) -> dict[str, list[Path]]:
    """The image files below each subfolder that is not hidden, by the subfolders' names, sorted.

    Raises:
        UserError: the folder is missing or a subfolder holds none.
    """
    folder, left_out = Path(folder), Counter[str]()
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder} with a folder of images per class.")
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    left_out[HIDDEN] = sum(map(is_hidden, classes))
    found = {name: _image_paths(folder / name, left_out) for name in classes if not is_hidden(name)}
    _say(folder, left_out)
    return found


def _image_paths(folder: Path, left_out: Counter[str]) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"There is no image folder {folder}.")
    endings, before, paths = readable_endings(), left_out.copy(), []
    try:
        for path in _files_below(folder, left_out):
            if path.suffix.lower() in endings:
                paths.append(path)
            else:
                left_out[path.suffix.lower()] += 1
    except OSError as error:
        raise UserError(f"The folder {error.filename} cannot be read: {error.strerror}.") from None
    if not paths:
        others = _listed(left_out - before)
        raise UserError(f"The folder {folder} holds no image files{f', but {others}' if others else ''}.")
    return sorted(paths)


def _files_below(folder: Path, left_out: Counter[str], above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """What is no folder and not hidden; a link back to one of the folders `above` is not followed."""
    here = folder.resolve()
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                left_out[HIDDEN] += 1
            elif entry.is_dir():
                yield from _files_below(Path(entry.path), left_out, (*above, here))
            else:
                yield Path(entry.path)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is one that people do not mean."""
    return name.startswith(".") or name in OF_SYSTEMS


def _say(folder: Path, left_out: Counter[str]) -> None:
    if others := _listed(left_out):
        logger.warning("Left out of %s: %s.", folder, others)


def _listed(left_out: Counter[str]) -> str:
    """E.g. "1,600 hidden, 3 .h5, 1 without an ending", the most first."""
    kinds = sorted((-count, kind) for kind, count in left_out.items() if count)
    return ", ".join(f"{-count:,} {kind or 'without an ending'}" for count, kind in kinds)
