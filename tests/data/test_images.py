"""Reading image files, and damaged ones."""

from pathlib import Path

import pytest
from PIL import Image

from sparse_vlm.data.images import open_image
from sparse_vlm.errors import UserError


@pytest.mark.parametrize(("mode", "size"), [("L", (1, 1)), ("RGBA", (30, 7)), ("P", (4000, 3000))])
def test_any_mode_and_size_becomes_rgb(tmp_path: Path, mode: str, size: tuple[int, int]) -> None:
    Image.new(mode, size).save(tmp_path / "a.png")
    image = open_image(tmp_path / "a.png")
    assert (image.mode, image.size) == ("RGB", size)


def test_missing_truncated_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.png does not exist"):
        open_image(tmp_path / "gone.png")
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:600])
    (tmp_path / "text.png").write_text("no image")
    for name in ("cut.jpg", "text.png"):
        with pytest.raises(UserError, match=rf"{name} cannot be read"):
            open_image(tmp_path / name)
