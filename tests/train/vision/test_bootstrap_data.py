"""The images of bootstrapping: training, held out, unreadable, refused."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torchvision.transforms import v2

from sparse_vlm.data.images.sets import ImageSubset
from sparse_vlm.data.images.streams import HeldOutStream
from sparse_vlm.errors import UserError
from tests.train.vision.bootstrap_runs import arguments, evaluated, make, measuring
from train.bootstrap import main
from train.vision.bootstrap_arguments import ImageArguments
from train.vision.bootstrap_images import figure_images, held_out_images, training_images, typical_images


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
    assert isinstance(images, HeldOutStream)
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
    assert "--zero_shot_data_path needs --eval_data_path: both are measured together" in capsys.readouterr().err


@pytest.mark.slow
def test_shards_serve_as_training_and_as_held_out_images(clip_dir: Path, image_shards: str, tmp_path: Path) -> None:
    options = {"eval_data_path": image_shards, "samples_per_epoch": 4, "eval_steps": 1, "max_steps": 3}
    assert main(arguments(clip_dir, image_shards, tmp_path, **options)) == 0
    assert [line["eval_images"] for line in evaluated(tmp_path)] == [8, 8, 8]
    assert (tmp_path / "rois.png").is_file()


def test_held_out_shards_are_measured_once_with_any_number_of_workers(
    clip_dir: Path, images: Path, image_shards: str, tmp_path: Path
) -> None:
    """Three shards: one of two readers would restart before the other has finished."""
    settings = ({"eval_data_path": images}, {"eval_data_path": image_shards, "dataloader_num_workers": 2})
    measured = [make(arguments(clip_dir, images, tmp_path, **options)).measure() for options in settings]
    assert measured[0] == pytest.approx(measured[1], abs=1e-6)


def pixels(spec: str | Path, **options: Any) -> list[bytes]:
    found = held_out_images(ImageArguments(data_path="nowhere", eval_data_path=str(spec), **options), v2.PILToTensor())
    assert found is not None
    return [item["pixel_values"].numpy().tobytes() for item in found]


def test_samples_of_a_folder_are_evenly_spaced_and_of_shards_the_first(images: Path, image_shards: str) -> None:
    every = pixels(images)
    assert len(set(every)) == 8
    assert pixels(images, eval_samples=3) == [every[0], every[2], every[5]]
    assert pixels(image_shards, eval_samples=5) == pixels(image_shards)[:5]


def test_held_out_images_are_not_trained_on(images: Path) -> None:
    sources = ImageArguments(str(images), eval_data_path=str(images), eval_samples=3, hold_out=True)
    held_out, rest = held_out_images(sources, v2.PILToTensor()), training_images(sources, v2.PILToTensor(), 0, 0)
    assert isinstance(rest, ImageSubset)
    parts = [[item["pixel_values"].numpy().tobytes() for item in part] for part in (held_out, rest)]
    assert [len(part) for part in parts] == [3, 5]
    assert {*parts[0], *parts[1]} == set(pixels(images))
    assert len(typical_images(sources, v2.PILToTensor())) == 5


@pytest.mark.slow
def test_a_run_with_held_out_images(clip_dir: Path, images: Path, tmp_path: Path) -> None:
    options = {"eval_data_path": images, "eval_samples": 2, "hold_out": True, "max_steps": 2, "eval_steps": 2}
    assert main(arguments(clip_dir, images, tmp_path / "out", num_train_epochs=1, **options)) == 0
    assert json.loads((tmp_path / "out/alignment.json").read_text())["images"] == 2


def test_streams_hold_out_other_shards(image_shards: str) -> None:
    sources = ImageArguments(image_shards, eval_data_path=image_shards, eval_samples=3, hold_out=True)
    with pytest.raises(
        UserError,
        match=r"--hold_out True is for folders and tables, but wds:.* is a stream: give --eval_data_path shards",
    ):
        training_images(sources, v2.PILToTensor(), 0, 0)


@pytest.mark.slow
def test_unreadable_held_out_images_are_excluded(clip_dir: Path, images: Path, damaged: Path, tmp_path: Path) -> None:
    """Results equal those of the readable images alone, for any batch size, from a folder or shards."""
    command = measuring(clip_dir, images, images, tmp_path / "out", zero_shot_data_path=images)
    expected = make(command).measure()
    assert (expected["unreadable"], expected["zero_shot_unreadable"]) == (0, 0)
    command = measuring(clip_dir, images, damaged, tmp_path / "out", zero_shot_data_path=damaged)
    for batch_size in (1, 3, 10):
        measured = make([*command, "--per_device_eval_batch_size", str(batch_size)]).measure()
        assert measured == pytest.approx(expected | {"unreadable": 2, "zero_shot_unreadable": 2}, abs=1e-6)
    with tarfile.open(tmp_path / "0.tar", "w") as shard:
        for file in sorted(damaged.rglob("*.png")):
            shard.add(file, f"{file.parent.name}{file.stem}.png")
    measured = make(measuring(clip_dir, images, f"wds:{tmp_path}/0.tar", tmp_path / "out")).measure()
    names = ("cosine", "centered_cosine", "roi_size", "roi_spread", "roi_outside", "images")
    assert measured == pytest.approx({name: expected[name] for name in names} | {"unreadable": 2}, abs=1e-6)


@pytest.mark.slow
def test_the_number_of_measured_images_is_reported(clip_dir: Path, images: Path, damaged: Path, tmp_path: Path) -> None:
    """Four images are chosen, of which some are unreadable; the figure does not show these either."""
    command = measuring(clip_dir, images, damaged, tmp_path / "out", eval_samples=4, eval_steps=1, max_steps=1)
    assert main(command) == 0
    line = evaluated(tmp_path / "out")[-1]
    assert (line["eval_images"], line["eval_unreadable"]) == (2, 2)
    alignment = json.loads((tmp_path / "out/alignment.json").read_text())
    assert (alignment["images"], alignment["unreadable"]) == (2, 2)
    sources = ImageArguments(data_path="nowhere", eval_data_path=str(damaged), on_bad_image="skip")
    shown = [image.tobytes() for image in figure_images(sources, count=10)]
    assert sorted(shown) == sorted(Image.open(file).tobytes() for file in images.rglob("*.png"))


@pytest.mark.slow
def test_a_bad_image_in_the_last_evaluation_is_a_one_line_error(
    clip_dir: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The image is read in a worker process, after training."""
    (tmp_path / "held out").mkdir()
    (tmp_path / "held out/broken.png").write_bytes(b"\x89PNG nothing more")
    options = {"eval_data_path": tmp_path / "held out", "max_steps": 1, "dataloader_num_workers": 1}
    assert main(arguments(clip_dir, images, tmp_path / "out", **options)) == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    assert printed.splitlines()[-1].startswith(f"error: The image {tmp_path / 'held out/broken.png'} cannot be read")


@pytest.mark.slow
def test_missing_held_out_images_is_a_one_line_error(
    clip_dir: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "held out").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "held out" / name).write_bytes(b"no image")
    assert main(measuring(clip_dir, images, tmp_path / "held out", tmp_path / "out", max_steps=1)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "error: None of the 2 held-out images (--eval_data_path) can be read."


def test_remote_shards_need_a_number(image_shards: str) -> None:
    """Like URLs, pipes do not tell how many images they hold."""
    remote = image_shards.replace("wds:", "wds:pipe:cat ")
    with pytest.raises(UserError, match=r"give --samples_per_epoch \(held-out images: --eval_samples\)"):
        pixels(remote)
    assert pixels(remote, eval_samples=5) == pixels(image_shards)[:5]
