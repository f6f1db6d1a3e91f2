"""Decode image files to RGB PIL images, with errors that name the file."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from PIL import EpsImagePlugin, Image, ImageFile, UnidentifiedImageError

from sparse_vlm.encoder.images import to_rgb
from sparse_vlm.errors import UserError, one_line


@cache
def readable_suffixes() -> frozenset[str]:
    """Return the suffixes (".png", …) of the formats whose pixels PIL can read.

    PIL also registers formats that it only writes (.pdf), only identifies (.h5, .mpg), or reads with a program that is
    not installed (.eps).
    """
    known = Image.registered_extensions()  # also fills Image.OPEN
    return frozenset(suffix for suffix, kind in known.items() if kind in Image.OPEN and _has_pixels(kind))


def _has_pixels(kind: str) -> bool:
    if kind == "EPS":
        return bool(EpsImagePlugin.has_ghostscript())
    opener = Image.OPEN[kind][0]
    return kind != "MPEG" and not (isinstance(opener, type) and issubclass(opener, ImageFile.StubImageFile))


def open_image(path: str | Path) -> Image.Image:
    """Read an image file completely and convert it with `to_rgb`.

    Raises:
        UserError: the file is missing, damaged or not an image.
    """
    with _reading(path), Image.open(path) as image:
        return to_rgb(image)


def decode_image(data: bytes, name: str, max_megapixels: float | None = None) -> Image.Image:
    """Decode the bytes of an image file and convert the image with `to_rgb`.

    Args:
        data: content of the file.
        name: names the image in the error.
        max_megapixels: refuse larger images, which would fill the memory; None: only PIL's own limit.

    Raises:
        UserError: the data is damaged, not an image, or too large.
    """
    with _reading(name), Image.open(io.BytesIO(data)) as image:
        if max_megapixels is not None and image.width * image.height > 1e6 * max_megapixels:
            raise UserError(f"it has {image.width}×{image.height} pixels, more than {max_megapixels:g} megapixels")
        return to_rgb(image)


@contextmanager
def _reading(name: str | Path) -> Iterator[None]:
    """Turn PIL's errors into UserErrors that name the image."""
    try:
        yield
    except MemoryError:  # not the file's fault
        raise
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"The image {name} does not exist. Check the path.") from None
    except UnidentifiedImageError as error:  # PIL's message shows the object that it reads from
        raise UserError(f"The image {name} cannot be read (unknown image format). Replace or remove it.") from error
    except Exception as error:  # PIL's decoders raise many types: AVIF a RuntimeError, QOI an IndexError, …
        raise UserError(f"The image {name} cannot be read ({one_line(error)}). Replace or remove it.") from error
