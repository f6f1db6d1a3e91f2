"""`open_images`: the same pictures from every kind of source; bad specs are one sentence each."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pytest
import torch
import webdataset
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from sparse_vlm.data.images.augmentation import augmentation
from sparse_vlm.data.images.hf_tables import cell_bytes
from sparse_vlm.data.images.shards import TableShards
from sparse_vlm.data.images.sources import open_images
from sparse_vlm.data.images.streams import ImageStream
from sparse_vlm.encoder import Preprocessing
from sparse_vlm.errors import UserError

to_tensor = v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)])


def pictures(spec: str, **options: object) -> set[bytes]:
    dataset = open_images(spec, to_tensor, **options)  # type: ignore[arg-type]
    items = iter(dataset) if isinstance(dataset, ImageStream) else (dataset[i] for i in range(len(dataset)))
    return {item["pixel_values"].numpy().tobytes() for item in items}


@pytest.fixture
def folder_pictures(image_folder: Path) -> set[bytes]:
    return pictures(str(image_folder))


@pytest.mark.parametrize("kind", ["hf:{}/saved", "hf:{}/splits:train", "hf:{}/splits", "hf:{}/parquet:train"])
def test_a_table_holds_the_folders_pictures(kind: str, tables: Path, folder_pictures: set[bytes]) -> None:
    assert len(folder_pictures) == 10
    assert pictures(kind.format(tables)) == folder_pictures


def test_a_split_may_be_a_slice(tables: Path, folder_pictures: set[bytes]) -> None:
    assert pictures(f"hf:{tables}/parquet:train[:40%]") < folder_pictures
    with pytest.raises(UserError, match=r"Unknown split of .*splits 'train\[1:\]'"):
        open_images(f"hf:{tables}/splits:train[1:]", to_tensor)


@pytest.mark.parametrize("kind", ["hf-stream:{}/saved", "hf-stream:{}/splits:train", "hf-stream:{}/parquet"])
def test_a_streamed_table_too(kind: str, tables: Path, folder_pictures: set[bytes]) -> None:
    assert pictures(kind.format(tables)) == folder_pictures


def test_streamed_files_of_unknown_length_need_one(image_folder: Path, folder_pictures: set[bytes]) -> None:
    spec = f"hf-stream:{image_folder}"
    assert pictures(spec, samples_per_epoch=10) == folder_pictures
    with pytest.raises(UserError, match=r"number of images of .* is not known: give --samples_per_epoch"):
        open_images(spec, to_tensor)


def test_shards_by_braces_and_joined(shards: str, folder_pictures: set[bytes]) -> None:
    assert pictures(f"wds:{shards}") == folder_pictures
    first, rest = shards.replace("{0..2}", "0"), shards.replace("{0..2}", "{1..2}")
    assert pictures(f"wds:{first}::file:{rest}") == folder_pictures
    assert len(pictures(f"wds:{first}")) == 4


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("{}", "The folder .* holds no image files"),
        ("{}/none", "There is no image folder .*none"),
        ("", "--data_path '' names no data"),
        (" ", "--data_path ' ' names no data"),
        ("wds:", "--data_path 'wds:' names no data"),
        ("wdz:{}/a.tar", "Unknown prefix of --data_path 'wdz'. Did you mean 'wds'.*and wdz:.*/a.tar does not exist"),
        ("wds:{}/{{0..3}}.tar", r"There is no shard .*0\.tar \(4 of 4 in"),
        ("wds:{}/{{0..", "not in webdataset's notation"),
        ("wds:{}/text.tar", "The shard .*text.tar cannot be read"),
        ("wds:https://example.invalid/a.tar", "give --samples_per_epoch"),
        ("hf:{}/none", "There is no data set directory .*none"),
        ("hf:{}", "The data set .* cannot be opened"),
        ("hf-stream:nobody/nothing", "The data set nobody/nothing cannot be opened"),
    ],
)
def test_a_bad_spec_is_one_sentence(spec: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "text.tar").write_text("no tar file")
    with pytest.raises(UserError, match=sentence):
        open_images(spec.format(tmp_path), to_tensor)


def test_bad_columns_and_splits(tables: Path) -> None:
    for spec, column, sentence in (
        ("saved", "picture", "Unknown column of .*saved 'picture'. .*image"),
        ("saved:train", None, "holds one data set without splits. Leave out 'train'"),
        ("splits:test", None, "Unknown split of .* 'test'"),
        ("parquet:test", None, "cannot be opened: Unknown split"),
        ("saved", "number", "The column 'number' of .*saved does not hold images"),
    ):
        with pytest.raises(UserError, match=sentence):
            open_images(f"hf:{tables}/{spec}", to_tensor, image_column=column)
    assert pictures(f"hf:{tables}/saved", image_column="image")


def test_a_data_set_of_several_configurations(image_files: list[bytes], tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image()})
    folder = tmp_path / "user@host"
    for index, name in enumerate(("one", "two")):
        rows = datasets.Dataset.from_dict({"image": [{"bytes": image_files[index], "path": None}]}, features=features)
        (folder / name).mkdir(parents=True)
        rows.to_parquet(folder / name / "a.parquet")
    files = [{"config_name": name, "data_files": [{"split": "shown", "path": f"{name}/*"}]} for name in ("one", "two")]
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(files)}\n---\n")
    one, two = (pictures(f"hf:{folder}@{name}:shown") for name in ("one", "two"))
    assert (len(one), len(two)) == (1, 1)
    assert one != two
    assert pictures(f"hf-stream:{folder}@two:shown", samples_per_epoch=1) == two
    for spec, sentence in (
        ("", r"Config name is missing.*\['one', 'two'\].* Write NAME@CONFIG\."),
        ("@three:shown", r"BuilderConfig 'three' not found. Available: \['one', 'two'\]"),
    ):
        with pytest.raises(UserError, match=sentence):
            open_images(f"hf:{folder}{spec}", to_tensor)


def test_a_saved_data_set_has_no_configurations(tables: Path) -> None:
    with pytest.raises(UserError, match=r"saved was saved without configurations\. Leave out 'one'"):
        open_images(f"hf:{tables}/saved@one", to_tensor)


@pytest.mark.parametrize("kind", ["cut", "empty", "textual"])
def test_a_damaged_shard_is_left_out(kind: str, shards: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The middle one of three; with "error" the sentence says how to go on."""
    folder = tmp_path / "shards"
    shutil.copytree(Path(shards).parent, folder)
    middle = folder / "1.tar"
    if kind == "textual":
        with webdataset.TarWriter(str(middle)) as writer:
            writer.write({"__key__": "a", "txt": "no image"})
    else:
        middle.write_bytes(middle.read_bytes()[: 2000 if kind == "cut" else 0])
    spec = f"wds:{folder}/{{0..2}}.tar"
    with pytest.raises(UserError, match=r"1\.tar .* --on_bad_image skip"):
        open_images(spec, to_tensor)
    stream = open_images(spec, to_tensor, on_bad_image="skip")
    assert isinstance(stream, ImageStream)
    assert len(stream) == 7 + (kind == "cut")  # the header of the first is whole
    assert "Skipped: The shard" in caplog.text
    assert "1.tar" in caplog.text
    whole = pictures(f"wds:{folder}/0.tar") | pictures(f"wds:{folder}/2.tar")
    assert {item["pixel_values"].numpy().tobytes() for item in stream} == whole
    assert stream.unreadable > 0
    for name in ("0.tar", "2.tar"):
        (folder / name).write_bytes(b"")
    if kind != "cut":
        with pytest.raises(UserError, match="None of the 3 shards holds an image that can be read"):
            open_images(spec, to_tensor, on_bad_image="skip")


def test_settings_that_say_nothing_are_refused(image_folder: Path, tables: Path, shards: str) -> None:
    for spec in (str(image_folder), f"hf:{tables}/saved"):
        with pytest.raises(UserError, match="--samples_per_epoch 5 is for streams"):
            open_images(spec, to_tensor, samples_per_epoch=5)
    with pytest.raises(UserError, match="--image_column x does not apply to the folder"):
        open_images(str(image_folder), to_tensor, image_column="x")
    with pytest.raises(UserError, match="at least one image, got --samples_per_epoch -1"):
        open_images(f"wds:{shards}", to_tensor, samples_per_epoch=-1)
    with pytest.raises(UserError, match="Unknown --on_bad_image 'ignore'"):
        open_images(str(image_folder), to_tensor, on_bad_image="ignore")


def test_augmentation_crops_flips_and_normalises() -> None:
    transform = augmentation(Preprocessing(resize=16, crop=16, mean=(0.5,) * 3, std=(0.5,) * 3), min_area=0.3)
    picture = Image.linear_gradient("L").convert("RGB")
    views: list[Tensor] = [transform(picture) for _ in range(4)]
    assert all(view.shape == (3, 16, 16) and view.dtype == torch.float32 for view in views)
    assert all(-1 <= view.min() < view.max() <= 1 for view in views)
    assert not torch.equal(views[0], views[1])


@pytest.mark.parametrize("min_area", [0.0, -0.1, 1.5, float("nan")])
def test_a_crops_smallest_share_is_a_share(min_area: float) -> None:
    with pytest.raises(UserError, match=rf"must be in \(0, 1\], got {min_area}"):
        augmentation(Preprocessing(resize=16, crop=16, mean=(0.5,) * 3, std=(0.5,) * 3), min_area)


def test_endings_that_pil_only_writes_are_no_images(image_files: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image_files[0])
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.4")
    assert len(pictures(str(tmp_path))) == 1
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        writer.write({"__key__": "a", "pdf": b"%PDF-1.4", "png": image_files[0]})
    assert pictures(f"wds:{tmp_path / 'a.tar'}") == pictures(str(tmp_path))


class BrokenConnectionError(Exception):
    """As httpx's errors: neither OSError nor ValueError, and here without a message."""


def test_a_connection_that_breaks_off_is_a_sentence(image_files: list[bytes]) -> None:
    def rows(fails: bool) -> Iterator[dict[str, Any]]:
        for data in image_files[:2]:
            yield {"image": {"bytes": data, "path": None}}
        if fails:
            raise BrokenConnectionError

    table = datasets.IterableDataset.from_generator(rows, gen_kwargs={"fails": True})
    shards = TableShards(table, "image")
    with pytest.raises(UserError, match=r"part 0 of 'image' cannot be read to its end \(BrokenConnectionError\)"):
        list(shards.read(0))


class BrokenFile(fsspec.AbstractFileSystem):
    """A host that hangs up."""

    protocol = "brokenhost"

    def _open(self, path: str, *args: object, **options: object) -> None:
        raise BrokenConnectionError


def test_a_remote_file_that_breaks_off_is_a_sentence() -> None:
    fsspec.register_implementation("brokenhost", BrokenFile, clobber=True)
    with pytest.raises(
        UserError, match=r"The image brokenhost://a.png \(row 3\) cannot be read \(BrokenConnectionError\)"
    ):
        cell_bytes({"bytes": None, "path": "brokenhost://a.png"}, "row 3")


WITHOUT_EXTRAS = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name in ("webdataset", "datasets", "transformers", "accelerate", "fsspec", "pyarrow"):
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, NotInstalled())
from sparse_vlm.data.images import augmentation, files, labels, loader, seeded, sets, shards, sources
from sparse_vlm.errors import UserError

for spec in sys.argv[1:]:
    try:
        print(len(sources.open_images(spec, None)))
    except UserError as error:
        print(error)
"""


def test_images_need_the_core_dependencies_only(image_folder: Path) -> None:
    """A folder opens without the packages of the extras. Other sources name the extra to install."""
    command = [sys.executable, "-c", WITHOUT_EXTRAS, str(image_folder), "hf:name", "hf-stream:name", "wds:a.tar"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    install = "pip install 'sparse-vlm[bootstrap]'."
    table = f"Reading a Hugging Face data set needs datasets: {install}"
    shards = f"Reading webdataset shards needs webdataset: {install}"
    assert ran.stdout.splitlines() == ["10", table, table, shards]
