"""Images of any kind become upright 8-bit RGB, or are refused with a one-sentence error."""

import io
import struct
import warnings
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from sparse_vlm.encoder.images import to_rgb
from sparse_vlm.encoder.preprocessing import Preprocessing, Transform, place_on_canvas, remove_canvas
from sparse_vlm.errors import UserError

COLOURS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
COLOURS[0, 0, :2] = 0, 255
WHITE = (255, 255, 255)


def pixels(image: Image.Image | np.ndarray | torch.Tensor, **options: int) -> np.ndarray:
    rgb = to_rgb(image, **options)
    assert rgb.mode == "RGB"
    return np.asarray(rgb)


def opened(image: Image.Image, kind: str, **options: object) -> Image.Image:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(io.BytesIO(file.getvalue()))


def pgm(maxval: int, values: Sequence[int]) -> Image.Image:
    head = f"P5\n{len(values)} 1\n{maxval}\n".encode()
    return Image.open(io.BytesIO(head + np.array(values, ">u2" if maxval > 255 else "u1").tobytes()))


def png(width: int, depth: int, kind: int, row: bytes, transparency: bytes) -> Image.Image:
    """One row; PIL cannot write 16-bit transparency."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, 1, depth, kind, 0, 0, 0)
    parts = ((b"IHDR", head), (b"tRNS", transparency), (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b""))
    return Image.open(io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)))


def tiff(bits: int, data: bytes, photometric: int = 1) -> Image.Image:
    """Four grey values in one row."""
    tags = {256: 4, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 1, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    start = struct.pack("<I", 8 + len(data))
    return Image.open(io.BytesIO(b"II*\0" + start + data + struct.pack("<H", len(tags)) + entries + bytes(4)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "MPO"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_exactly_once(kind: str, orientation: int) -> None:
    corner = np.zeros((32, 48, 3), dtype=np.uint8)
    corner[:16, :16] = 255
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    # where the first row and column of the file are on the upright image, as the EXIF specification says
    top, left = [(1, 1), (1, 0), (0, 0), (0, 1), (1, 1), (1, 0), (0, 0), (0, 1)][orientation - 1]
    image = opened(Image.fromarray(corner), kind, exif=exif)
    upright = to_rgb(image)
    assert upright.size == ((32, 48) if orientation > 4 else (48, 32))
    assert upright.getpixel((4 if left else upright.width - 4, 4 if top else upright.height - 4))[0] > 240
    assert np.asarray(upright)[..., 0].mean() < 70
    assert np.array_equal(pixels(upright), np.asarray(upright))


def test_the_transforms_apply_orientation_and_transparency() -> None:
    tall = np.zeros((40, 20, 4), dtype=np.uint8)
    tall[:20, :, :] = (255, 0, 0, 255)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image = opened(Image.fromarray(tall), "PNG", exif=exif)
    upright = Image.fromarray(np.where(tall[..., 3:] > 0, tall[..., :3], 255).astype(np.uint8)).rotate(270, expand=True)
    for preprocessing in (Preprocessing(64, 48), Preprocessing(64, 64, resize_mode="squash")):
        transform = Transform(preprocessing)
        assert torch.equal(transform(image), transform(upright))
    canvas = place_on_canvas(image, Preprocessing(64, 64))
    assert remove_canvas(canvas).shape == (3, 32, 64)
    assert torch.equal(remove_canvas(canvas), remove_canvas(place_on_canvas(upright, Preprocessing(64, 64))))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa", "La"])
def test_alpha_is_composited_on_white(mode: str) -> None:
    image = Image.new("RGBA", (3, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    image.putpixel((2, 0), (0, 0, 0, 128))
    converted = image.convert("LA").convert(mode) if mode in ("LA", "La") else image.convert(mode)
    assert pixels(converted)[0, :, 1].tolist() == [0, 255, 127]


def test_opaque_alpha_changes_nothing() -> None:
    image = Image.fromarray(COLOURS)
    assert np.array_equal(pixels(image.convert("RGBA")), COLOURS)


@pytest.mark.parametrize("transparency", [3, bytes([255, 255, 255, 0] + [255] * 252)])
def test_palettes_with_transparency(transparency: int | bytes) -> None:
    palette = Image.fromarray(COLOURS).convert("P")
    palette.putpixel((0, 0), 3)
    expected = np.asarray(palette.convert("RGB")).copy()
    expected[np.asarray(palette) == 3] = 255
    palette.info["transparency"] = transparency
    assert np.array_equal(pixels(palette), expected)
    assert np.array_equal(pixels(opened(palette, "PNG")), expected)
    file = opened(palette, "GIF", transparency=3) if transparency == 3 else opened(palette, "PNG")
    assert to_rgb(file).getpixel((0, 0)) == WHITE


def test_one_transparent_colour() -> None:
    assert pixels(png(3, 8, 0, bytes([15, 16, 0]), b"\0\x0f"))[0, :, 0].tolist() == [255, 16, 0]
    assert pixels(png(8, 1, 0, b"\x0f", b"\0\x01"))[0, :, 0].tolist() == [0] * 4 + [255] * 4
    wide = struct.pack(">3H", 0, 30_000, 0xFF00)
    assert pixels(png(3, 16, 0, wide, b"\0\0"))[0, :, 0].tolist() == [255, 117, 255]
    colour = struct.pack(">6H", 30_000, 0, 65_535, 0, 0, 0)
    assert pixels(png(2, 16, 2, colour, colour[:6])).tolist() == [[[255] * 3, [0] * 3]]


@pytest.mark.parametrize("maxval", [1000, 4095, 65_535])
def test_a_pgm_is_scaled_by_its_maxval_whatever_its_content(maxval: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for values in ([0, 255], [0, 256], [0, maxval]):
            grey = pixels(pgm(maxval, values))[0, :, 0]
            assert abs(int(grey[1]) - values[1] * 255 / maxval) <= 1


def test_tiff_tags_give_the_number_of_bits_and_the_value_of_white() -> None:
    packed = bytes([0x00, 0x08, 0x00, 0xFF, 0xF4, 0x00])  # 0, 2048, 4095, 1024
    assert pixels(tiff(12, packed))[0, :, 0].tolist() == [0, 128, 255, 64]
    values = struct.pack("<4H", 0, 2048, 65_535, 30_000)
    assert pixels(tiff(16, values))[0, :, 0].tolist() == [0, 8, 255, 117]
    assert pixels(tiff(16, values, photometric=0))[0, :, 0].tolist() == [255, 247, 0, 138]
    with pytest.raises(UserError, match="White is unknown in a greyscale image with 32 bits"):
        to_rgb(tiff(32, struct.pack("<4I", 0, 5, 200, 255)))


def test_twelve_bits_in_sixteen_are_warned_about_and_can_be_scaled() -> None:
    xray = opened(Image.fromarray(np.array([[0, 1024, 4095]], dtype=np.uint16)), "PNG")
    with pytest.warns(UserWarning, match="no value above 4095 and becomes nearly black"):
        assert pixels(xray)[0, :, 0].tolist() == [0, 4, 15]
    assert pixels(xray, white=4095)[0, :, 0].tolist() == [0, 64, 255]
    with pytest.raises(UserError, match="values from 0 to 4095"):
        to_rgb(xray, white=1023)


@pytest.mark.parametrize("high", [255, 4095])
def test_a_16_bit_array_that_becomes_nearly_black_is_warned_about(high: int) -> None:
    """DICOM files store 12 bits like this; others store 8 bits."""
    narrow = np.array([[0, high]], dtype=np.uint16)
    for form in (narrow, torch.from_numpy(narrow), opened(Image.fromarray(narrow), "PNG")):
        with pytest.warns(UserWarning, match="no value above 4095 and becomes nearly black"):
            to_rgb(form)
        assert pixels(form, white=high)[0, :, 0].tolist() == [0, 255]
    to_rgb(np.zeros((2, 2), dtype=np.uint16))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "I;16", "I", "F"])
@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_an_image_without_pixels_is_refused(mode: str, size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=f"has no pixels: its size is {size[0]}×{size[1]}"):
        to_rgb(Image.new(mode, size))
    with pytest.raises(UserError, match="is not an image"):
        to_rgb(np.zeros(size, dtype=np.uint8))


@pytest.mark.parametrize("other", ["a.png", b"\x89PNG", None, 3])
def test_other_objects_are_named_in_the_error(other: Any) -> None:
    with pytest.raises(UserError, match=f"not {type(other).__name__}. Open files with PIL"):
        to_rgb(other)


def test_arrays_and_tensors_in_either_layout() -> None:
    grey, alpha = COLOURS[..., 0], np.dstack([COLOURS, np.full((6, 9), 255, np.uint8)])
    repeated = np.dstack([grey] * 3)
    for array, expected in ((COLOURS, COLOURS), (alpha, COLOURS), (grey[..., None], repeated), (grey, repeated)):
        tensor = torch.from_numpy(array)
        first = tensor.movedim(-1, 0) if array.ndim == 3 else tensor
        for form in (
            array,
            tensor,
            first,
            first.numpy(),
            tensor.long(),
            tensor / 255,
            (array / 255).astype(np.float16),
        ):
            assert np.array_equal(pixels(form), expected)
    assert pixels(np.array([[[0, 0], [0, 255]]], dtype=np.uint8))[0, :, 0].tolist() == [255, 0]
    assert pixels(np.array([[False, True]]))[0, :, 0].tolist() == [0, 255]
    assert pixels(np.array([[0, 65_535]], dtype=np.uint16))[0, :, 0].tolist() == [0, 255]
    assert pixels(torch.rand(3, 8, 8).bfloat16().requires_grad_()).shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (COLOURS.astype(np.float32), "values from 0 to 255: convert it to 8 bits first, or scale it to 0…1"),
        (COLOURS.astype(np.float32) / 127.5 - 1, "values from -1 to 1: convert"),
        (np.array([[0.0, np.nan]]), "values from nan to nan"),
        (COLOURS.astype(np.int64) * 3, r"int64 with values from 0 to 765: image values must lie in 0…255"),
        (COLOURS[None], r"shape \[1, 6, 9, 3\] is not an image"),
        (np.zeros((5, 6, 7)), r"shape \[5, 6, 7\] is not an image"),
        (np.zeros((0, 3, 3)), r"shape \[0, 3, 3\] is not an image"),
        (np.zeros((2, 2), dtype=complex), "complex128 is not an image"),
    ],
)
def test_other_ranges_and_shapes_are_refused(array: np.ndarray, message: str) -> None:
    for form in (array, torch.from_numpy(array)):
        with pytest.raises(UserError, match=message.replace("complex128", "complex(128|64)")):
            to_rgb(form)


def test_the_input_image_is_not_changed() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image = opened(Image.fromarray(COLOURS), "PNG", exif=exif)
    before = dict(image.info), image.size
    to_rgb(image)
    assert (dict(image.info), image.size) == before
    assert image.getexif()[ExifTags.Base.Orientation] == 6
