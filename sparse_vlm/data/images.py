"""Image files -> PIL images, with errors that name the file."""

import io
from functools import cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from sparse_vlm.encoder.preprocessing import to_rgb
from sparse_vlm.errors import UserError

# PIL's decoders raise all of these for damaged files
_DAMAGED = (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError)


@cache
def readable_endings() -> frozenset[str]:
    """File endings, ".png" …, of the formats that PIL reads: it registers those that it only writes (.pdf) as well."""
    known = Image.registered_extensions()  # also fills Image.OPEN
    return frozenset(ending for ending, kind in known.items() if kind in Image.OPEN)


def open_image(path: str | Path) -> Image.Image:
    """Reads an image file completely and returns it as RGB, any size and aspect ratio.

    Raises:
        UserError: the file is missing, no image, or cut short; the sentence names it.
    """
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"The image {path} does not exist. Check the path and --image_folder.") from None
    except _DAMAGED as error:
        raise _unreadable(path, error) from error


def decode_image(data: bytes, name: str) -> Image.Image:
    """An encoded image (the bytes of a file) as RGB; `name` stands for it in the error.

    Raises:
        UserError: no image, or cut short.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return to_rgb(image)
    except _DAMAGED as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str | Path, error: BaseException) -> UserError:
    return UserError(f"The image {name} cannot be read ({error}). Replace or remove it.")
