"""Image files -> PIL images, with errors that name the file."""

from pathlib import Path

from PIL import Image, UnidentifiedImageError

from sparse_vlm.encoder.preprocessing import to_rgb
from sparse_vlm.errors import UserError


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
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        # PIL's decoders raise all of these for damaged files
        raise UserError(f"The image {path} cannot be read ({error}). Replace or remove it.") from error
