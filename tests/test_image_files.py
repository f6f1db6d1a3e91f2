"""Decoding of image files, sound and damaged."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from sparse_vlm.errors import UserError
from sparse_vlm.image_files import decode_image, open_image


@pytest.mark.parametrize(("mode", "size"), [("L", (1, 1)), ("RGBA", (30, 7)), ("P", (4000, 3000))])
def test_any_mode_and_size_becomes_rgb(tmp_path: Path, mode: str, size: tuple[int, int]) -> None:
    Image.new(mode, size).save(tmp_path / "a.png")
    image = open_image(tmp_path / "a.png")
    assert (image.mode, image.size) == ("RGB", size)


@pytest.mark.parametrize(("orientation", "corner"), [(None, (0, 0)), (1, (0, 0)), (6, (1, 0)), (8, (0, 2))])
def test_images_are_rotated_by_their_exif_orientation(
    tmp_path: Path, orientation: int | None, corner: tuple[int, int]
) -> None:
    original = Image.new("RGB", (3, 2))
    original.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    original.save(tmp_path / "a.png", exif=exif)
    image = open_image(tmp_path / "a.png")
    assert image.size == ((2, 3) if orientation in (6, 8) else (3, 2))
    assert image.getpixel(corner) == (255, 255, 255)


def test_damaged_exif_data_is_ignored(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2), "red").save(tmp_path / "a.png", exif=b"Exif\0\0not a TIFF header")
    assert open_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["AVIF", "QOI", "DDS", "WEBP", "TIFF", "PNG"])
def test_any_error_of_pil_is_one_sentence(kind: str) -> None:
    """AVIF: RuntimeError, QOI: IndexError, DDS: NotImplementedError, …"""
    file = io.BytesIO()
    Image.effect_noise((32, 32), 50).convert("RGB").save(file, kind)
    intact, generator, messages = file.getvalue(), np.random.default_rng(0), []
    for _ in range(60):
        damaged = np.frombuffer(intact, np.uint8).copy()
        damaged[generator.integers(4, len(damaged), 12)] = generator.integers(0, 256, 12)
        try:
            decode_image(damaged[: generator.integers(len(damaged) // 2, len(damaged))].tobytes(), "damaged")
        except UserError as error:
            messages.append(str(error))
    assert len(messages) > 10
    assert all(sentence.startswith("The image damaged cannot be read (") for sentence in messages)


def test_missing_truncated_and_unknown_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.png does not exist"):
        open_image(tmp_path / "gone.png")
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:600])
    (tmp_path / "text.png").write_text("not an image")
    for name in ("cut.jpg", "text.png"):
        with pytest.raises(UserError, match=rf"{name} cannot be read"):
            open_image(tmp_path / name)


def test_the_error_of_an_unknown_format_hides_pils_objects() -> None:
    for data in (b"", b"<svg/>", b"#?RADIANCE"):
        with pytest.raises(UserError, match=r"^The image x cannot be read \(unknown image format\)"):
            decode_image(data, "x")
