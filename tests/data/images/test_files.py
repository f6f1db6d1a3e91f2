"""Image files below a folder, the ones that are ignored, and tables of names that workers share."""

import gc
import logging
import pickle
from pathlib import Path

import pytest
import torch
import webdataset
from torchvision.transforms import v2

from sparse_vlm.data.images.files import PathTable, StringTable
from sparse_vlm.data.images.labels import Labels, read_class_folders
from sparse_vlm.data.images.sets import ImageFolder
from sparse_vlm.data.images.sources import open_images
from sparse_vlm.errors import UserError
from sparse_vlm.image_files import readable_suffixes

OTHERS = (
    "._0.png",  # macOS writes one beside each file on a foreign disk
    ".ipynb_checkpoints/0-checkpoint.png",
    "__MACOSX/a/._0.png",
    "@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg",
    "a.h5",
    "b.hdf",
    "c.wmf",
    "d.mpg",
    "e.grib",
    "Thumbs.db",
    "README",
)


@pytest.fixture
def messy_folder(tmp_path: Path, image_files: list[bytes]) -> Path:
    """Two classes of two images each, with other files beside and inside them, below a hidden folder."""
    folder = tmp_path / ".hidden above" / "images"
    for index, data in enumerate(image_files[:4]):
        file = folder / ("b" if index < 2 else "a") / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    for place in (folder, folder / "a"):
        for name in OTHERS:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(b"something else")
    return folder


def test_other_files_in_a_folder_are_ignored(messy_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        images = ImageFolder(messy_folder, v2.PILToTensor())
    assert [Path(path).name for path in images.paths] == ["2.png", "3.png", "0.png", "1.png"]
    assert f"Ignored in {messy_folder}: 8 hidden, " in caplog.text
    for words in ("2 .h5", "2 .hdf", "2 .wmf", "2 .mpg", "2 .grib", "2 .db", "2 without a suffix"):
        assert words in caplog.text


def test_other_files_in_class_folders_are_ignored(messy_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        labels = read_class_folders(messy_folder)
    assert labels.classes == ("a", "b")
    assert [path.name for path in labels.paths] == ["2.png", "3.png", "0.png", "1.png"]
    assert len(caplog.records) == 1
    assert "7 hidden, 1 without a suffix, 1 .db, 1 .grib, 1 .h5, 1 .hdf, 1 .mpg, 1 .wmf." in caplog.text


def test_a_folder_without_images_is_an_error(tmp_path: Path) -> None:
    for name in (".a.png", "b.h5"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"holds no image files, but 1 \.h5, 1 hidden\."):
        open_images(str(tmp_path), v2.PILToTensor())


def test_other_files_in_shards_are_ignored(tmp_path: Path, image_files: list[bytes]) -> None:
    """A tar file from a Mac has ._0.png before 0.png. A sample may hold features beside its image."""
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        writer.write({"__key__": "._0", "png": b"resource fork"})
        writer.write({"__key__": "0", "png": image_files[0], "h5": b"features"})
    (item,) = open_images(f"wds:{tmp_path}/a.tar", v2.PILToTensor())
    assert item["pixel_values"].shape == (3, 20, 24)


def test_suffixes_of_readable_formats() -> None:
    suffixes = readable_suffixes()
    assert suffixes >= {".png", ".jpg", ".jpeg", ".webp", ".tif", ".bmp", ".gif", ".ppm"}
    assert not suffixes & {".h5", ".hdf", ".wmf", ".emf", ".grib", ".bufr", ".mpg", ".mpeg", ".pdf"}


@pytest.mark.parametrize("table", [StringTable, PathTable])
def test_a_table_of_strings_or_paths(table: type[StringTable] | type[PathTable]) -> None:
    kind = str if table is StringTable else Path
    names = [f"/a/{index}/é\udcff.png" for index in range(50)]  # a name that is not UTF-8, as Python decodes it
    paths = table(names)
    assert list(paths) == [kind(name) for name in names]
    assert paths[-1] == kind(names[-1])
    assert paths[3:9:2] == [kind(name) for name in names[3:9:2]]
    with pytest.raises(IndexError):
        paths[50]
    assert list(pickle.loads(pickle.dumps(paths))) == list(paths)
    assert len(table([])) == 0


@pytest.mark.slow
def test_labels_hold_no_python_object_per_image() -> None:
    """Each data worker would copy 400,000 path objects."""
    gc.collect()
    before = len(gc.get_objects())
    labels = Labels([Path(f"/images/{index}.png") for index in range(20_000)], torch.zeros(20_000), ("a", "b"))
    gc.collect()
    assert len(gc.get_objects()) < before + 5_000
    assert labels.paths[19_999] == Path("/images/19999.png")
