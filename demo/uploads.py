"""Uploaded files, and copies of them for the page. Their names and contents are not trusted."""

import io
import warnings
from pathlib import Path

from gradio.processing_utils import save_pil_to_cache
from gradio.utils import get_upload_folder
from PIL import Image

from demo.session import SentImage
from sparse_vlm.errors import UserError
from sparse_vlm.image_files import decode_image

SHOWN_SIDE = 768  # most pixels of the longer side of an image's copy in the chat
DRAWING_SIDE = 768  # pixels of the longer side of a copy to draw on


def receive(path: str, max_megapixels: float) -> SentImage:
    """Read an uploaded file.

    Raises:
        UserError: see `open_upload`.
    """
    name, data = Path(path).name, Path(path).read_bytes()
    return SentImage(data, name, save_copy(small_copy(open_upload(data, name, max_megapixels))))


def small_copy(image: Image.Image) -> Image.Image:
    """Return a copy that is small enough for the page."""
    copy = image.copy()
    copy.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    return copy


def copy_of_side(image: Image.Image, side: int = DRAWING_SIDE) -> Image.Image:
    """Return a copy whose longer side has `side` pixels; small images are enlarged, so that a box on them is clear."""
    scale = side / max(image.size)
    return image.resize([max(1, round(length * scale)) for length in image.size])


def save_copy(image: Image.Image) -> str:
    """Save an image where the page can serve it; returns the path."""
    return save_pil_to_cache(image, cache_dir=get_upload_folder(), format="png")


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
