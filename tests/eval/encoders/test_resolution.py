"""An encoder at several image sizes: every size is compared with the first, and the figure is written."""

import json
from pathlib import Path

import pytest
from PIL import Image

from eval.encoders.resolution import at_size, main
from sparse_vlm.encoder import SparseFormer


@pytest.fixture
def image(tmp_path: Path) -> Path:
    file = tmp_path / "image.png"
    Image.radial_gradient("L").convert("RGB").save(file)
    return file


def test_a_row_for_each_size_and_a_figure(
    encoder_dir: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = tmp_path / "figure.png"
    words = ["--encoder", str(encoder_dir), "--images", str(image)]
    words += ["--dtype", "float32", "--output", str(tmp_path / "out.json")]
    assert main([*words, "--scales", "1", "2", "--figure", str(figure)]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["dtype"] == "float32"
    rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert [int(row[0]) for row in rows] == [64, 128]
    assert [float(row[3]) == 0 for row in rows] == [True, False]
    with Image.open(figure) as drawn:
        assert drawn.width > drawn.height


def test_the_number_of_tokens_does_not_change(tiny_encoder: SparseFormer) -> None:
    result = at_size(tiny_encoder, [Image.radial_gradient("L")], scale=3, repeats=1)
    assert result.side == 192
    assert result.points.shape == (1, 6, 16, 2)


def test_scales_are_checked(encoder_dir: Path, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--encoder", str(encoder_dir), "--images", str(image), "--scales", "0"]) == 2
    assert capsys.readouterr().err == "error: --scales must be at least 1, got 0.\n"
