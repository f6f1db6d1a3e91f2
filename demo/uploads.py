"""Uploaded files -> images. Their names and contents are whatever a stranger chose."""

import io
import warnings

from PIL import Image

from sparse_vlm.errors import UserError
from sparse_vlm.image_files import decode_image


def open_upload(data: bytes, name: str, max_megapixels: float) -> Image.Image:
    """Decode an image as its sender sees it: the first frame, turned as the camera says, RGB.

    Args:
        data: content of the uploaded file.
        name: shown to the user.
        max_megapixels: larger ones would fill the memory.

    Raises:
        UserError: not an image, damaged, or too large; the sentence names it.
    """
    size = _size(data)
    if size is not None and size[0] * size[1] > 1e6 * max_megapixels:
        raise UserError(
            f"The image {name} has {size[0]}×{size[1]} pixels, more than the {max_megapixels:g} megapixels that are "
            "taken here. Send a smaller one."
        )
    return decode_image(data, name)


def _size(data: bytes) -> tuple[int, int] | None:
    """Width and height as the file's head says, None where PIL cannot tell: decoding says why."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is ours
            with Image.open(io.BytesIO(data)) as image:
                return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
