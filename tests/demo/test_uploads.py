"""Uploaded files, without a browser."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo.uploads import open_upload
from sparse_vlm.errors import UserError
from tests.demo.files import TOO_LARGE, write_uploads


def upload(file: Path, max_megapixels: float) -> Image.Image:
    return open_upload(file.read_bytes(), file.name, max_megapixels)


@pytest.fixture
def expected(tmp_path: Path, images: list[Image.Image]) -> dict[str, str | None]:
    return write_uploads(tmp_path, images[0])


def test_each_file_is_an_image_or_a_one_line_error(expected: dict[str, str | None], tmp_path: Path) -> None:
    assert len(expected) == 9
    for name, message in expected.items():
        if message is None:
            assert upload(tmp_path / name, max_megapixels=64).mode == "RGB"
            continue
        with pytest.raises(UserError, match=message) as error:
            upload(tmp_path / name, max_megapixels=64)
        assert name in str(error.value)
        assert str(tmp_path) not in str(error.value)  # the message does not reveal the server's folders


def test_a_rotated_image_is_rotated_back(expected: dict[str, str | None], tmp_path: Path) -> None:
    seen = upload(tmp_path / "rotated.jpg", max_megapixels=64)
    with Image.open(tmp_path / "rotated.jpg") as stored:
        np.testing.assert_array_equal(np.asarray(seen), np.rot90(np.asarray(stored.convert("RGB")), k=-1))


def test_images_have_a_maximum_size(tmp_path: Path) -> None:
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    assert upload(tmp_path / "a.png", max_megapixels=0.01).size == (100, 100)
    with pytest.raises(UserError, match=f"a.png has 100×100 pixels, more than the 0.009 {TOO_LARGE}"):
        upload(tmp_path / "a.png", max_megapixels=0.009)
