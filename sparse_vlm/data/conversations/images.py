"""The images that conversations name: files below a folder, or parts of a shard or table."""

import re
from abc import ABC, abstractmethod
from pathlib import Path

from PIL import Image

from sparse_vlm.errors import UserError, one_line
from sparse_vlm.image_files import decode_image, open_image

ADDRESS = re.compile(r"data:|\w+://")


class Images(ABC):
    """The images of a source, by the names that its records use."""

    def check(self, name: str) -> None:  # noqa: B027  # names that were made from a shard or table always exist
        """Check that an image exists, without reading it."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return the bytes of an image file."""

    def open(self, name: str) -> Image.Image:
        """Return an image as RGB."""
        return decode_image(self.read(name), name)


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

    def read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise UserError(f"The image {self.folder / name} cannot be read ({one_line(error)}).") from error

    def open(self, name: str) -> Image.Image:
        return open_image(self.folder / name)
