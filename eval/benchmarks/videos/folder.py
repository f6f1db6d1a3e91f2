"""The files of a benchmark's videos, found by their names in a folder and the folders in it."""

import os
from collections import defaultdict
from pathlib import Path

from sparse_vlm.errors import UserError

VIDEOS = (
    ".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".gif", ".flv", ".mpg", ".mpeg", ".ts", ".wmv", ".ogv", ".3gp"
)  # fmt: skip
SUBTITLES = (".srt",)


class NamedFiles:
    """The files below a folder, by their names without the ending.

    Args:
        folder: the folder; None: only names are known, as in scoring.
        suffixes: endings of the files, in lower case.
    """

    def __init__(self, folder: Path | None, suffixes: tuple[str, ...] = VIDEOS) -> None:
        self.folder, self._suffix = folder, suffixes[0]
        self._files: dict[str, list[Path]] = defaultdict(list)
        for inner, _, names in os.walk(folder, followlinks=True) if folder is not None else ():
            for name in names:
                path = Path(inner, name)
                if path.suffix.lower() in suffixes:
                    self._files[path.stem].append(path)

    def find(self, name: str) -> Path:
        """Return the file of this name; if there is none, the path that it would have.

        Raises:
            UserError: several files have the name.
        """
        found = self._files.get(name, [])
        if len(found) > 1:
            raise UserError(
                f"{self.folder} has {len(found)} files named {name}: {found[0]} and {found[1]}. Leave one there."
            )
        return found[0] if found else Path(self.folder or "", name + self._suffix)
