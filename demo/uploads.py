"""Decoding of uploaded files. Their names and contents are not trusted."""

import io
import warnings

from PIL import Image

from sparse_vlm.errors import UserError
from sparse_vlm.image_files import decode_image


def open_upload(data: bytes, name: str, max_megapixels: float) -> Image.Image:
    """Decode an image as its sender sees it: the first frame, rotated by its EXIF orientation, as RGB.

    Args:
        data: content of the uploaded file.
        name: the file's name, for messages.
        max_megapixels: larger images are refused before they are decoded into memory.

    Raises:
        UserError: the file is not an image, is damaged, or is too large; the message names it.
    """
    size = _size(data)
    if size is not None and size[0] * size[1] > 1e6 * max_megapixels:
        raise UserError(
            f"The image {name} has {size[0]}×{size[1]} pixels, more than the {max_megapixels:g} megapixels "
            "allowed here. Send a smaller one."
        )
    return decode_image(data, name)


def _size(data: bytes) -> tuple[int, int] | None:
    """Read width and height from the file's header; None if PIL cannot, and decoding then raises the error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is ours
            with Image.open(io.BytesIO(data)) as image:
                return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
