"""The scripts of docs/examples run, on tiny models."""

import importlib.util
import re
from pathlib import Path

import pytest
from PIL import Image

from sparse_vlm.data.images.labels import read_label_table

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))


def run(name: str, *arguments: object) -> None:
    """Run a script's main() in this process."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("image") / "red.png"
    Image.new("RGB", (120, 80), "red").save(file)
    return file


@pytest.mark.slow
def test_encode_image(image: Path, encoder_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("encode_image", image, "--model", encoder_dir)
    assert "6 latent tokens of 128 channels, and 1 more (CLS)" in capsys.readouterr().out
    run("encode_image", image)  # a real variant
    assert "48 latent tokens of 768 channels" in capsys.readouterr().out


def test_swap_clip_tower(clip_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("swap_clip_tower", "--teacher", clip_dir, "--output", tmp_path / "clip")
    assert re.search(r"a red circle: cosine -?0\.\d{3}\na blue square: cosine", capsys.readouterr().out)
    assert (tmp_path / "clip" / "open_clip_config.json").is_file()


@pytest.mark.slow
def test_build_vlm(
    image: Path, encoder_dir: Path, llm_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--encoder", encoder_dir, "--llm", llm_dir, "--output", tmp_path / "vlm", "--image", image]
    run("build_vlm", *arguments, "--max_new_tokens", 4)
    text = capsys.readouterr().out
    assert "6 visual tokens per image" in text
    assert text.index("> What is shown?") < text.index("> Are you sure?")


@pytest.mark.slow
def test_visualise_rois(image: Path, vlm_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("visualise_rois", image, "--model", vlm_dir, "--output", tmp_path / "rois.png")
    covered = re.findall(r"sampling step \d: the RoIs cover (\d+)%", capsys.readouterr().out)
    assert len(covered) == 3
    assert int(covered[0]) > 90  # the initial RoIs tile the image
    assert (tmp_path / "rois.png").stat().st_size > 1000


def test_tile_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The labels of a grid are those of its cells, and each image is used once before any is used again."""
    colours = {"a": (255, 0, 0), "b": (0, 255, 0), "c": (0, 0, 255)}
    for name, colour in colours.items():
        (tmp_path / "images" / name).mkdir(parents=True)
        for width in (30, 40):
            Image.new("RGB", (width, 20), colour).save(tmp_path / "images" / name / f"{width}.png")
    (tmp_path / "names.txt").write_text("red\ngreen\nblue\n")
    arguments = ["--images", tmp_path / "images", "--class_names", tmp_path / "names.txt", "--grids", 3, "--size", 33]
    run("tile_images", *arguments, "--output", tmp_path / "tiled")
    assert "3 grids with 3 classes" in capsys.readouterr().out
    labels = read_label_table(tmp_path / "tiled/labels.csv", tmp_path / "tiled")
    assert labels.classes == ("red", "green", "blue")
    shown = []
    for path, flags in zip(labels.paths, labels.values.tolist(), strict=True):
        with Image.open(path) as grid:
            assert grid.size == (32, 32)
            cells = [grid.getpixel((x, y)) for y in (8, 24) for x in (8, 24)]
        assert flags == [float(colour in cells) for colour in colours.values()]
        shown += cells
    assert all(shown.count(colour) == 4 for colour in colours.values())  # 12 cells of 6 images


def test_every_example_is_linked() -> None:
    page = (ROOT / "docs" / "examples" / "index.md").read_text()
    assert {file.name for file in EXAMPLES} == set(re.findall(r"\((\w+\.py)\)", page))
