"""Conversion of PIL images of any mode, arrays and tensors to upright 8-bit RGB."""

import warnings
from contextlib import suppress
from typing import Any, TypeAlias

import numpy as np
from PIL import ExifTags, Image
from torch import Tensor

from sparse_vlm.errors import UserError, unknown_choice

AnyImage: TypeAlias = Image.Image | np.ndarray | Tensor
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
WHITE = 0xFFFF  # in 16-bit greyscale images
ORIENTED = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")  # entries of PIL's `info`
LAYOUTS = (None, "channels_first", "channels_last")
CHANNELS = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def to_rgb(image: AnyImage, white: int | None = None, layout: str | None = None) -> Image.Image:
    """Convert an image to 8-bit RGB, upright according to its EXIF or XMP orientation, with transparency on white.

    - 16-bit greyscale is divided by 256. So is a PGM file with any MAXVAL above 255, which PIL scales to 16 bits. A
      12-bit TIFF file is scaled from 12 bits.
    - A 32-bit greyscale PIL image without a file format (mode "I") has a range of 8 bits if no value exceeds 255, and
      of 16 bits otherwise.
    - Integer arrays other than uint16 must lie in 0…255, floating-point arrays in 0…1.

    Args:
        image: a PIL image of any mode and size, or an array or tensor: [H, W], [H, W, C] or [C, H, W] with 1 to 4
            channels (grey, grey and alpha, RGB, RGBA). If both layouts are possible, an array is read as [H, W, C] and
            a tensor as [C, H, W].
        white: value of white in a greyscale image with more than 8 bits, e.g. 4095 for 12 bits in a 16-bit PNG file.
            None applies the rules above, with a warning if no value exceeds 4095.
        layout: "channels_first" or "channels_last"; None applies the rule above.

    Raises:
        UserError: `image` is not an image, has no pixels, or its value range or axis order is ambiguous.
    """
    if layout not in LAYOUTS:
        raise unknown_choice("layout of an image", str(layout), filter(None, LAYOUTS))
    if not isinstance(image, Image.Image):
        image = _from_array(image, white, layout)
    if 0 in image.size:
        raise UserError(f"The image has no pixels: its size is {image.width}×{image.height}.")
    image.load()
    turn = UPRIGHT.get(_orientation(image))
    rgb = _on_white(_of_8_bits(image, white))
    if turn is not None:
        rgb = rgb.transpose(turn)
    for key in ORIENTED:  # the result is upright and must not be rotated again
        rgb.info.pop(key, None)
    return rgb


def _orientation(image: Image.Image) -> Any:
    with suppress(Exception):  # PIL can raise almost anything for damaged EXIF data; the pixels are still valid
        return image.getexif().get(ExifTags.Base.Orientation)
    return None


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        try:
            return image.convert("RGB")
        except ValueError as error:  # LAB
            raise UserError(f"Cannot convert an image of mode {image.mode} to RGB: convert it first.") from error
    transparency = image.info.get("transparency")
    if isinstance(transparency, tuple) and max(transparency) > 0xFF:  # a 16-bit PNG, whose pixels PIL converts
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in transparency)
    if image.mode == "La":  # premultiplied
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    rgb = Image.new("RGB", image.size, "white")
    rgb.paste(rgba, mask=rgba.getchannel("A"))
    return rgb


def _of_8_bits(image: Image.Image, white: int | None) -> Image.Image:
    """Convert mode "I;16…", "I" or "F" to "L", or "LA" if one value is transparent. Other modes are unchanged."""
    if not (image.mode.startswith("I") or image.mode == "F"):
        return image
    values = np.asarray(image)
    if image.mode == "F":
        grey = _clip_free(values, "A floating-point greyscale image", 0xFF)
        if 0 < values.max() <= 1:
            raise UserError(
                f"A floating-point greyscale image with values from {values.min():g} to {values.max():g}: convert it "
                "to 8 bits first, because white could be 1 or 255."
            )
    else:
        grey = _wide_grey(values, _white_of(image, values) if white is None else white)
    if _tags(image).get(ExifTags.Base.PhotometricInterpretation) == 0:  # white is 0; PIL only inverts 8-bit images
        grey = 0xFF - grey
    result = Image.fromarray(grey)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        result.putalpha(Image.fromarray(np.where(values == transparent, 0, 0xFF).astype(np.uint8)))
    return result


def _tags(image: Image.Image) -> Any:
    """Tags of a TIFF file; empty for other formats."""
    return getattr(image, "tag_v2", {})


def _white_of(image: Image.Image, values: np.ndarray) -> int:
    """Value of white in an integer greyscale image, according to its file format."""
    bits = _tags(image).get(ExifTags.Base.BitsPerSample, (16,))[0]
    if image.mode == "I" and bits > 16:
        raise UserError(f"White is unknown in a greyscale image with {bits} bits: convert it to 8 bits first.")
    if bits < 16:
        return (1 << bits) - 1
    if image.mode == "I" and image.format is None and values.max() <= 0xFF:
        return 0xFF
    return _white_of_16_bits(values)


def _white_of_16_bits(values: np.ndarray) -> int:
    """65535, with a warning if the values suggest another white."""
    if 0 < values.max() <= 0xFFF:
        warnings.warn(
            "A 16-bit image has no value above 4095 and becomes nearly black. If it contains 12 bits, use "
            "sparse_vlm.encoder.images.to_rgb(image, white=4095), or save it with 65535 as white.",
            stacklevel=2,
        )
    return WHITE


def _wide_grey(values: np.ndarray, white: int) -> np.ndarray:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > white:
        raise UserError(f"A greyscale image with values from {low} to {high}: convert it to 8 bits first.")
    return (values.astype(np.uint32) * 256 // (white + 1)).astype(np.uint8)


def _clip_free(values: np.ndarray, what: str, white: float) -> np.ndarray:
    """Convert floating-point values in 0…white to uint8; raise an error instead of clipping."""
    scaled = np.rint(values * (0xFF / white))
    if not (scaled.min() >= 0 and scaled.max() <= 0xFF):  # NaN as well
        raise UserError(
            f"{what} with values from {values.min():g} to {values.max():g}: convert it to 8 bits first, or scale it to "
            f"0…{white:g}."
        )
    return scaled.astype(np.uint8)


def _from_array(array: np.ndarray | Tensor, white: int | None, layout: str | None) -> Image.Image:
    if not hasattr(array, "__array__"):
        raise UserError(
            f"An image must be a PIL image, an array or a tensor, not {type(array).__name__}. Open files with "
            "PIL.Image.open."
        )
    first = isinstance(array, Tensor)
    if isinstance(array, Tensor):
        array = array.detach().cpu()
        array = array.float().numpy() if array.is_floating_point() else array.numpy()
    array = np.asarray(array)
    if layout is not None:
        first = layout == "channels_first"
    channels = _channels_last(array, first, fixed=layout is not None)
    pixels = np.ascontiguousarray(_array_of_8_bits(channels, white))
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels, CHANNELS[pixels.shape[-1]])


def _channels_last(array: np.ndarray, first: bool, fixed: bool) -> np.ndarray:
    """Convert to [H, W, C]. `first`: try [C, H, W] first; `fixed`: do not try the other layout."""
    if array.ndim == 2 and array.size:
        return array[..., None]
    if array.ndim == 3 and array.size:
        for axis in (0, 2) if first else (2, 0):
            if array.shape[axis] in CHANNELS:
                return np.moveaxis(array, axis, -1)
            if fixed:
                break
    raise UserError(
        f"An array of shape {list(array.shape)} is not an image: it must be [H, W], [H, W, C] or [C, H, W] with 1 to 4 "
        "channels C."
    )


def _array_of_8_bits(array: np.ndarray, white: int | None) -> np.ndarray:
    kind = array.dtype.kind
    if kind == "b":
        return array.astype(np.uint8) * 0xFF
    if array.dtype == np.uint16:
        return _wide_grey(array, _white_of_16_bits(array) if white is None else white)
    if kind in "ui":
        low, high = int(array.min()), int(array.max())
        if low < 0 or high > 0xFF:
            raise UserError(
                f"An array of {array.dtype} with values from {low} to {high}: image values must lie in 0…255, or in "
                "0…65535 for uint16."
            )
        return array.astype(np.uint8)
    if kind == "f":
        return _clip_free(array, f"An array of {array.dtype}", 1)
    raise UserError(f"An array of {array.dtype} is not an image: values must be numbers.")
