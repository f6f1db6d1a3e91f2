"""`open_images`: the same images from every kind of source; errors of bad specs."""

import json
import shutil
from pathlib import Path

import datasets
import pytest
import torch
import webdataset
from torchvision.transforms import v2

from sparse_vlm.data.images.sources import open_images
from sparse_vlm.data.images.streams import ImageStream
from sparse_vlm.errors import UserError

to_tensor = v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)])


def pixels_of(spec: str, **options: object) -> set[bytes]:
    dataset = open_images(spec, to_tensor, **options)  # type: ignore[arg-type]
    items = iter(dataset) if isinstance(dataset, ImageStream) else (dataset[i] for i in range(len(dataset)))
    return {item["pixel_values"].numpy().tobytes() for item in items}


@pytest.fixture
def folder_pixels(image_folder: Path) -> set[bytes]:
    return pixels_of(str(image_folder))


@pytest.mark.parametrize("kind", ["hf:{}/saved", "hf:{}/splits:train", "hf:{}/splits", "hf:{}/parquet:train"])
def test_a_table_holds_the_same_images_as_the_folder(kind: str, tables: Path, folder_pixels: set[bytes]) -> None:
    assert len(folder_pixels) == 10
    assert pixels_of(kind.format(tables)) == folder_pixels


def test_a_split_may_be_a_slice(tables: Path, folder_pixels: set[bytes]) -> None:
    assert pixels_of(f"hf:{tables}/parquet:train[:40%]") < folder_pixels
    with pytest.raises(UserError, match=r"Unknown split of .*splits 'train\[1:\]'"):
        open_images(f"hf:{tables}/splits:train[1:]", to_tensor)


@pytest.mark.parametrize("kind", ["hf-stream:{}/saved", "hf-stream:{}/splits:train", "hf-stream:{}/parquet"])
def test_a_streamed_table_holds_the_same_images(kind: str, tables: Path, folder_pixels: set[bytes]) -> None:
    assert pixels_of(kind.format(tables)) == folder_pixels


def test_a_stream_of_unknown_length_needs_samples_per_epoch(image_folder: Path, folder_pixels: set[bytes]) -> None:
    spec = f"hf-stream:{image_folder}"
    assert pixels_of(spec, samples_per_epoch=10) == folder_pixels
    with pytest.raises(UserError, match=r"number of images of .* is not known: give --samples_per_epoch"):
        open_images(spec, to_tensor)


def test_shards_by_braces_and_joined(shards: str, folder_pixels: set[bytes]) -> None:
    assert pixels_of(f"wds:{shards}") == folder_pixels
    first, rest = shards.replace("{0..2}", "0"), shards.replace("{0..2}", "{1..2}")
    assert pixels_of(f"wds:{first}::file:{rest}") == folder_pixels
    assert len(pixels_of(f"wds:{first}")) == 4


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
    (tmp_path / "text.tar").write_text("not a tar file")
    with pytest.raises(UserError, match=sentence):
        open_images(spec.format(tmp_path), to_tensor)


def test_bad_columns_and_splits(tables: Path) -> None:
    for spec, column, sentence in (
        ("saved", "photo", "Unknown column of .*saved 'photo'. .*image"),
        ("saved:train", None, "holds one data set without splits. Leave out 'train'"),
        ("splits:test", None, "Unknown split of .* 'test'"),
        ("parquet:test", None, "cannot be opened: Unknown split"),
        ("saved", "number", "The column 'number' of .*saved does not hold images"),
    ):
        with pytest.raises(UserError, match=sentence):
            open_images(f"hf:{tables}/{spec}", to_tensor, image_column=column)
    assert pixels_of(f"hf:{tables}/saved", image_column="image")


def test_a_data_set_of_several_configurations(image_files: list[bytes], tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image()})
    folder = tmp_path / "user@host"
    for index, name in enumerate(("one", "two")):
        rows = datasets.Dataset.from_dict({"image": [{"bytes": image_files[index], "path": None}]}, features=features)
        (folder / name).mkdir(parents=True)
        rows.to_parquet(folder / name / "a.parquet")
    files = [{"config_name": name, "data_files": [{"split": "shown", "path": f"{name}/*"}]} for name in ("one", "two")]
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(files)}\n---\n")
    one, two = (pixels_of(f"hf:{folder}@{name}:shown") for name in ("one", "two"))
    assert (len(one), len(two)) == (1, 1)
    assert one != two
    assert pixels_of(f"hf-stream:{folder}@two:shown", samples_per_epoch=1) == two
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
    """The middle one of three is damaged. With the policy "error", the message says how to continue."""
    folder = tmp_path / "shards"
    shutil.copytree(Path(shards).parent, folder)
    middle = folder / "1.tar"
    if kind == "textual":
        with webdataset.TarWriter(str(middle)) as writer:
            writer.write({"__key__": "a", "txt": "not an image"})
    else:
        middle.write_bytes(middle.read_bytes()[: 2000 if kind == "cut" else 0])
    spec = f"wds:{folder}/{{0..2}}.tar"
    with pytest.raises(UserError, match=r"1\.tar .* --on_bad_image skip"):
        open_images(spec, to_tensor)
    stream = open_images(spec, to_tensor, on_bad_image="skip")
    assert isinstance(stream, ImageStream)
    assert len(stream) == 7 + (kind == "cut")  # the header of its first image is complete
    assert "Skipped: The shard" in caplog.text
    assert "1.tar" in caplog.text
    whole = pixels_of(f"wds:{folder}/0.tar") | pixels_of(f"wds:{folder}/2.tar")
    assert {item["pixel_values"].numpy().tobytes() for item in stream} == whole
    assert stream.unreadable > 0
    for name in ("0.tar", "2.tar"):
        (folder / name).write_bytes(b"")
    if kind != "cut":
        with pytest.raises(UserError, match="None of the 3 shards holds an image that can be read"):
            open_images(spec, to_tensor, on_bad_image="skip")


def test_settings_that_do_not_apply_are_errors(image_folder: Path, tables: Path, shards: str) -> None:
    for spec in (str(image_folder), f"hf:{tables}/saved"):
        with pytest.raises(UserError, match="--samples_per_epoch 5 is for streams"):
            open_images(spec, to_tensor, samples_per_epoch=5)
    with pytest.raises(UserError, match="--image_column x does not apply to the folder"):
        open_images(str(image_folder), to_tensor, image_column="x")
    with pytest.raises(UserError, match="at least one image, got --samples_per_epoch -1"):
        open_images(f"wds:{shards}", to_tensor, samples_per_epoch=-1)
    with pytest.raises(UserError, match="Unknown --on_bad_image 'ignore'"):
        open_images(str(image_folder), to_tensor, on_bad_image="ignore")


def test_formats_that_pil_only_writes_are_not_images(image_files: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image_files[0])
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.4")
    assert len(pixels_of(str(tmp_path))) == 1
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        writer.write({"__key__": "a", "pdf": b"%PDF-1.4", "png": image_files[0]})
    assert pixels_of(f"wds:{tmp_path / 'a.tar'}") == pixels_of(str(tmp_path))
