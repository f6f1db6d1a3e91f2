"""Decoded video frames → upright 8-bit RGB images with square pixels."""

from typing import Any

import numpy as np
from PIL import Image

from sparse_vlm.encoder.images import to_rgb
from sparse_vlm.errors import UserError
from sparse_vlm.videos.hdr import BT2020, HLG, PQ, to_srgb

# (a, b, c, d) of a display matrix: a point (x, y) of the frame is shown at (a·x + c·y, b·x + d·y)
UPRIGHT = {
    (1, 0, 0, 1): None,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}
MATRIX = "DISPLAYMATRIX"


def to_image(frame: Any, aspect: float) -> Image.Image:
    """Convert a frame of PyAV to RGB.

    More than 8 bits are reduced to 8, and the colours of HDR (PQ, HLG) and BT.2020 to those of sRGB; see `to_srgb`.
    Transparent pixels are white.

    Args:
        frame: an `av.VideoFrame` in any pixel format.
        aspect: width of a pixel divided by its height.

    Raises:
        UserError: the file asks for a rotation by something else than a multiple of 90°.
    """
    transparent = frame.format.has_palette or any(component.is_alpha for component in frame.format.components)
    wide = frame.color_trc in (PQ, HLG) or frame.color_primaries == BT2020
    options: dict[str, Any] = {"format": "rgb48le" if wide else "rgba" if transparent else "rgb24"}
    if aspect > 1:
        options["width"] = round(frame.width * aspect)
    elif aspect < 1:
        options["height"] = round(frame.height / aspect)
    pixels = frame.reformat(**options).to_ndarray()
    image = to_rgb(Image.fromarray(to_srgb(pixels, frame.color_trc, frame.color_primaries) if wide else pixels))
    turn = _turn(frame)
    return image if turn is None else image.transpose(turn)


def _turn(frame: Any) -> Image.Transpose | None:
    """Return what makes a frame upright by the file's display matrix; None if it is upright."""
    if MATRIX not in frame.side_data:
        return None
    matrix = np.frombuffer(bytes(frame.side_data[MATRIX]), np.int32)[[0, 1, 3, 4]]
    corner = tuple(int(value) for value in np.rint(matrix / max(1, np.abs(matrix).max())))
    if corner not in UPRIGHT:
        raise UserError("The video asks to be rotated by an angle that is not a multiple of 90°: rotate it first.")
    return UPRIGHT[corner]
