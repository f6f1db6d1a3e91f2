"""Labelled images from class folders and from shards, and their errors."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torchvision.transforms import v2

from sparse_vlm.data.images.labelled_sets import open_labelled_set
from sparse_vlm.errors import UserError


def pack(shard: Path, names: Sequence[str], files: Sequence[bytes], mode: str = "w") -> Path:
    """Write a tar file."""
    with tarfile.open(shard, mode) as tar:  # type: ignore[call-overload]  # mypy wants a literal mode
        for name, data in zip(names, files, strict=True):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return shard


def test_shards_are_the_folders_that_were_packed(image_folder: Path, tmp_path: Path) -> None:
    """In the order of the shards; hidden files and other kinds of files are left out."""
    names = [str(path.relative_to(image_folder)) for path in sorted(image_folder.rglob("*.png"))]
    files = [(image_folder / name).read_bytes() for name in names]
    pack(tmp_path / "a.tar", [*names[::2], "0/.hidden.png", "0/0.txt"], [*files[::2], b"", b"a caption"])
    pack(tmp_path / "b.tar", [f"./photos/{name}" for name in names[1::2]], files[1::2])
    folder = open_labelled_set(str(image_folder), v2.PILToTensor())
    shards = open_labelled_set(f"wds:{tmp_path}/{{a,b}}.tar", v2.PILToTensor())
    assert shards.classes == folder.classes == ("0", "1")
    order = [*range(0, 10, 2), *range(1, 10, 2)]
    assert torch.equal(shards.values, folder.values[order])
    for index, other in enumerate(order):
        assert torch.equal(shards.images[index]["pixel_values"], folder.images[other]["pixel_values"])


def test_spread_takes_images_of_all_classes(image_folder: Path) -> None:
    labelled = open_labelled_set(str(image_folder), v2.PILToTensor())
    few = labelled.spread(4)
    assert (len(few.images), few.values.tolist(), few.classes) == (4, [0, 0, 1, 1], ("0", "1"))
    assert torch.equal(few.images[2]["pixel_values"], labelled.images[5]["pixel_values"])


@pytest.mark.parametrize(
    ("names", "mode", "sentence"),
    [
        (["0/0.png", "1.png"], "w", r"The image 1\.png of .*a\.tar lies in no folder, .* Pack it as CLASS/NAME\.jpg"),
        (["0/0.png", "0/1.png"], "w", "All images of wds:.* lie in the folder 0: there must be one folder per class"),
        (["0/0.png", "0/0.png"], "w", r"a\.tar holds 0/0\.png twice"),
        (["0/0.txt", "1/1.txt"], "w", r"a\.tar holds no images"),
        (["0/0.png", "1/1.png"], "w:gz", "It must be a tar file without compression"),
    ],
)
def test_malformed_shards_are_refused(
    names: list[str], mode: str, sentence: str, image_files: list[bytes], tmp_path: Path
) -> None:
    shard = pack(tmp_path / "a.tar", names, image_files[: len(names)], mode)
    with pytest.raises(UserError, match=sentence):
        open_labelled_set(f"wds:{shard}", v2.PILToTensor())


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("wds:nowhere.tar", r"There is no shard nowhere\.tar \(1 of 1 in 'nowhere\.tar' are missing\)"),
        ("wds:https://example.org/a.tar", r"is not a local file\. Download it: labelled images are read by index"),
        ("wdz:a.tar", r"Unknown prefix of --test_images 'wdz'\. Did you mean 'wds'"),
        ("", "--test_images '' names no data"),
        ("nowhere", "There is no folder nowhere with a folder of images per class"),
    ],
)
def test_bad_specs_are_named(spec: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        open_labelled_set(spec, v2.PILToTensor(), "--test_images")
