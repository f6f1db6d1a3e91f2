"""Image files -> PIL images, with errors that name the file."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from PIL import EpsImagePlugin, Image, ImageFile, UnidentifiedImageError

from sparse_vlm.encoder.images import to_rgb
from sparse_vlm.errors import UserError, one_line


@cache
def readable_endings() -> frozenset[str]:
    """File endings, ".png" …, of the formats whose pixels PIL reads. It registers others as well: those that it only
    writes (.pdf), or only knows by their first bytes (.h5, .mpg), or reads with a program that is not there (.eps)."""
    known = Image.registered_extensions()  # also fills Image.OPEN
    return frozenset(ending for ending, kind in known.items() if kind in Image.OPEN and _has_pixels(kind))


def _has_pixels(kind: str) -> bool:
    if kind == "EPS":
        return bool(EpsImagePlugin.has_ghostscript())
    opener = Image.OPEN[kind][0]
    return kind != "MPEG" and not (isinstance(opener, type) and issubclass(opener, ImageFile.StubImageFile))


def open_image(path: str | Path) -> Image.Image:
    """Read an image file completely and return it as RGB, any size and aspect ratio; see `to_rgb`.

    Raises:
        UserError: the file is missing, no image, or cut short; the sentence names it.
    """
    with _sentences(path), Image.open(path) as image:
        return to_rgb(image)


def decode_image(data: bytes, name: str, max_megapixels: float | None = None) -> Image.Image:
    """An encoded image (the bytes of a file) likewise; `name` stands for it in the error.

    Args:
        data: of a file.
        name: stands for the image in the error.
        max_megapixels: larger ones would fill the memory; None: PIL's own limit alone.

    Raises:
        UserError: no image, cut short, or too large.
    """
    with _sentences(name), Image.open(io.BytesIO(data)) as image:
        if max_megapixels is not None and image.width * image.height > 1e6 * max_megapixels:
            raise UserError(f"it has {image.width}×{image.height} pixels, more than {max_megapixels:g} megapixels")
        return to_rgb(image)


@contextmanager
def _sentences(name: str | Path) -> Iterator[None]:
    try:
        yield
    except MemoryError:  # the machine's fault, not the file's
        raise
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"The image {name} does not exist. Check the path and the folder that it is in.") from None
    except UnidentifiedImageError as error:  # PIL's own words show the object that it reads from
        raise UserError(f"The image {name} cannot be read (no known image format). Replace or remove it.") from error
    except Exception as error:  # PIL's decoders have no error in common: AVIF's RuntimeError, QOI's IndexError, …
        raise UserError(f"The image {name} cannot be read ({one_line(error)}). Replace or remove it.") from error
