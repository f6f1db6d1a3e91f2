"""The images that conversations name: files below a folder, or parts of a shard or table."""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from sparse_vlm.data.conversations.samples import Sample
from sparse_vlm.errors import UserError, error_context, one_line
from sparse_vlm.image_files import decode_image, open_image

ADDRESS = re.compile(r"data:|\w+://")


class Images(ABC):
    """The images of a source, by the names that its records use."""

    def check(self, name: str) -> None:  # noqa: B027  # names that were made from a shard or table always exist
        """Check that an image exists, without reading it."""

    @abstractmethod
    def stamp(self, name: str) -> str | None:
        """Return a text that changes when the content of an image does, without decoding it; None: there is none.

        Raises:
            OSError: the image cannot be found.
        """

    def video(self, name: str) -> Path:
        """Return the path of a video, a file or a folder of frames.

        Raises:
            UserError: the source has no videos, or not this one.
        """
        raise UserError(
            f"the video {name[:60]!r} cannot be read: videos are files that LLaVA's JSON or JSONL names, below "
            "--video_folder, not parts of shards or tables."
        )

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return the bytes of an image file."""

    def open(self, name: str) -> Image.Image:
        """Return an image as RGB."""
        return decode_image(self.read(name), name)


def file_stamp(path: Path) -> str:
    """Return a file's path, size and time of its last change."""
    status = path.stat()
    return f"{os.path.abspath(path)} {status.st_size} {status.st_mtime_ns}"


class FolderImages(Images):
    """Files below a folder. A name is a path relative to it.

    Args:
        folder: of the images.
        videos: the folder of the videos; None: that of the images.
    """

    def __init__(self, folder: Path, videos: Path | None = None) -> None:
        self.folder, self.videos = folder, folder if videos is None else videos

    def check(self, name: str) -> None:
        _check_exists(self.folder, name, "image")

    def video(self, name: str) -> Path:
        _check_exists(self.videos, name, "video")
        return self.videos / name

    def stamp(self, name: str) -> str:
        return file_stamp(self.folder / name)

    def read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise UserError(f"The image {self.folder / name} cannot be read ({one_line(error)}).") from error

    def open(self, name: str) -> Image.Image:
        return open_image(self.folder / name)


def _check_exists(folder: Path, name: str, kind: str) -> None:
    """Check that an image, or a video, which may be a folder of frames, exists."""
    if ADDRESS.match(name):
        raise UserError(f"the {kind} {name[:60]!r} is an address: download the file to --{kind}_folder.")
    path = folder / name
    try:
        exists = path.is_file() or (kind == "video" and path.is_dir())
        problem = None if exists else "does not exist"
    except OSError as error:  # a name that is too long, a folder without permission
        problem = f"cannot be read ({one_line(error)})"
    if problem:
        raise UserError(f"the {kind} {path} {problem}. Check --{kind}_folder, or use --on_bad_sample skip.")


class SampleImage(NamedTuple):
    """An image that a sample names. Errors name the sample too."""

    sample: Sample
    images: Images
    name: str

    @property
    def key(self) -> str:
        """Names the image among those of its source."""
        return self.name

    @property
    def size(self) -> int:
        """The number of images: 1."""
        return 1

    def check(self) -> None:
        """Check that the image exists, without reading it."""
        with error_context(str(self.sample)):
            self.images.check(self.name)

    def contents(self) -> list[bytes]:
        """Return the bytes of the image file."""
        with error_context(str(self.sample)):
            return [self.images.read(self.name)]

    def opened(self) -> list[Image.Image]:
        """Return the image as RGB."""
        with error_context(str(self.sample)):
            return [self.images.open(self.name)]

    def decoded(self, contents: Sequence[bytes]) -> list[Image.Image]:
        """Return the image as RGB from what `contents` returned."""
        with error_context(str(self.sample)):
            return [decode_image(contents[0], self.name)]
