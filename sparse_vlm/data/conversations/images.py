"""The images that conversations name: files below a folder, or parts of a shard or table."""

import os
import re
from abc import ABC, abstractmethod
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
    """Files below a folder. A name is a path relative to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def check(self, name: str) -> None:
        if ADDRESS.match(name):
            raise UserError(f"the image {name[:60]!r} is an address: download the file to --image_folder.")
        try:
            problem = None if (self.folder / name).is_file() else "does not exist"
        except OSError as error:  # a name that is too long, a folder without permission
            problem = f"cannot be read ({one_line(error)})"
        if problem:
            raise UserError(
                f"the image {self.folder / name} {problem}. Check --image_folder, or use --on_bad_sample skip."
            )

    def stamp(self, name: str) -> str:
        return file_stamp(self.folder / name)

    def read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise UserError(f"The image {self.folder / name} cannot be read ({one_line(error)}).") from error

    def open(self, name: str) -> Image.Image:
        return open_image(self.folder / name)


class SampleImage(NamedTuple):
    """An image that a sample names. Errors name the sample too."""

    sample: Sample
    images: Images
    name: str

    def check(self) -> None:
        """Check that the image exists, without reading it."""
        with error_context(str(self.sample)):
            self.images.check(self.name)

    def read(self) -> bytes:
        """Return the bytes of the image file."""
        with error_context(str(self.sample)):
            return self.images.read(self.name)

    def open(self) -> Image.Image:
        """Return the image as RGB."""
        with error_context(str(self.sample)):
            return self.images.open(self.name)

    def decode(self, data: bytes) -> Image.Image:
        """Return the image as RGB from the bytes that `read` returned."""
        with error_context(str(self.sample)):
            return decode_image(data, self.name)
