"""What bootstrapping opens its pictures with, and what it refuses."""

import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torchvision.transforms import v2

from sparse_vlm.data.image_streams import ImageStream
from sparse_vlm.errors import UserError
from tests.train.bootstrap_runs import arguments, evaluated, make
from train.bootstrap import main
from train.bootstrap_arguments import ImageArguments
from train.bootstrap_images import held_out_images


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


def test_shards_serve_as_training_and_as_held_out_images(clip_dir: Path, image_shards: str, tmp_path: Path) -> None:
    options = {"eval_data_path": image_shards, "samples_per_epoch": 4, "eval_steps": 1, "max_steps": 3}
    assert main(arguments(clip_dir, image_shards, tmp_path, **options)) == 0
    assert [line["eval_images"] for line in evaluated(tmp_path)] == [8, 8, 8]
    assert (tmp_path / "rois.png").is_file()


def test_held_out_shards_are_measured_once_whatever_the_workers(
    clip_dir: Path, images: Path, image_shards: str, tmp_path: Path
) -> None:
    """Three shards: with two readers, one would begin anew before the other has read all of its own."""
    settings = ({"eval_data_path": images}, {"eval_data_path": image_shards, "dataloader_num_workers": 2})
    measured = [make(arguments(clip_dir, images, tmp_path, **options)).measure() for options in settings]
    assert measured[0] == pytest.approx(measured[1], abs=1e-6)


def pixels(spec: str | Path, **options: Any) -> list[bytes]:
    found = held_out_images(ImageArguments(data_path="nowhere", eval_data_path=str(spec), **options), v2.PILToTensor())
    assert found is not None
    return [item["pixel_values"].numpy().tobytes() for item in found]


def test_some_of_a_folder_are_spread_and_of_shards_the_first(images: Path, image_shards: str) -> None:
    every = pixels(images)
    assert len(set(every)) == 8
    assert pixels(images, eval_samples=3) == [every[0], every[2], every[5]]
    assert pixels(image_shards, eval_samples=5) == pixels(image_shards)[:5]


def test_remote_shards_need_a_number(image_shards: str) -> None:
    """Those of a pipe do not tell how many they hold, as those behind a URL."""
    remote = image_shards.replace("wds:", "wds:pipe:cat ")
    with pytest.raises(UserError, match=r"give --samples_per_epoch \(held-out images: --eval_samples\)"):
        pixels(remote)
    assert pixels(remote, eval_samples=5) == pixels(image_shards)[:5]
