"""What bootstrapping opens its pictures with, and what it refuses."""

import tarfile
from pathlib import Path

import pytest
from PIL import Image
from torchvision.transforms import v2

from sparse_vlm.data.image_streams import ImageStream
from train.bootstrap import held_out_images, main
from train.bootstrap_arguments import ImageArguments


@pytest.fixture
def two_endings(tmp_path: Path) -> str:
    """A shard with two images per sample."""
    with tarfile.open(tmp_path / "0.tar", "w") as shard:
        for name, colour in (("a.jpg", "red"), ("a.png", "blue")):
            Image.new("RGB", (8, 8), colour).save(tmp_path / name)
            shard.add(tmp_path / name, name)
    return f"wds:{tmp_path / '0.tar'}"


def test_held_out_images_come_from_the_same_column(two_endings: str) -> None:
    images = held_out_images(
        ImageArguments(data_path=two_endings, eval_data_path=two_endings, image_column="png"), v2.PILToTensor()
    )
    assert isinstance(images, ImageStream)
    assert [item["pixel_values"][:, 0, 0].tolist() for item in images] == [[0, 0, 255]]


def test_a_held_out_folder_has_no_columns(two_endings: str, tmp_path: Path) -> None:
    images = held_out_images(
        ImageArguments(data_path=two_endings, eval_data_path=str(tmp_path), image_column="png"), v2.PILToTensor()
    )
    assert images is not None
    assert len(images) == 2


def test_zero_shot_without_held_out_images_is_refused(
    clip_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"teacher": clip_dir, "data_path": tmp_path, "output_dir": tmp_path / "out"}
    command = [word for name, value in places.items() for word in (f"--{name}", str(value))]
    command += ["--tokens", "4", "--max_steps", "1", "--zero_shot_data_path", str(tmp_path), "--use_cpu", "true"]
    assert main(command) == 2
    assert "measured together with the alignment: give --eval_data_path too" in capsys.readouterr().err
