"""Conversations in webdataset's shards, and bad shards."""

import json
import tarfile
from pathlib import Path

import pytest

from sparse_vlm.data.conversations.sources import open_sources
from sparse_vlm.errors import UserError
from tests.data.conversations.records import GREEN, ONE, RED, colours, shard_files, write_shard


def test_webdataset_shards(folder: Path) -> None:
    files = list(shard_files(folder).items())
    write_shard(folder / "0.tar", dict(files[:2]))
    write_shard(folder / "1.tar", dict(files[2:]))
    (source,) = open_sources(f"wds:{folder}/{{0..1}}.tar", "unused")
    assert [one["id"] for one in source.records] == ["one", "two", "none"]
    assert colours(source) == [[RED], [RED, GREEN], []]


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"x.png": b""}, r"The sample x of .* has no x\.json; the suffixes of its files: png"),
        ({"x.json": b"["}, r"x\.json of .* is not valid JSON"),
        ({"x.json": b"[]"}, r"x\.json of .* must hold a LLaVA sample"),
        ({}, "There are no samples in the shards"),
    ],
)
def test_bad_shards_are_named(tmp_path: Path, files: dict[str, bytes], sentence: str) -> None:
    write_shard(tmp_path / "s.tar", files)
    with pytest.raises(UserError, match=sentence):
        open_sources(f"wds:{tmp_path}/s.tar", "unused")


def test_a_damaged_image_in_a_shard_is_named(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.tar", {"x.json": json.dumps(ONE).encode(), "x.png": b"\x89PNG no"})
    (source,) = open_sources(f"wds:{tmp_path}/s.tar", "unused")
    with pytest.raises(UserError, match=r"The image x\.png of .*s\.tar cannot be read"):
        colours(source)
    with pytest.raises(UserError, match=r"There is no shard .*missing\.tar \(1 of 1 in"):
        open_sources(f"wds:{tmp_path}/missing.tar", "unused")


def test_images_of_a_sample_are_in_numeric_order(folder: Path) -> None:
    """The order is not 0, 1, 10, 11, 2, …."""
    files = shard_files(folder)
    value = "<image>" * 12 + "Which is green?"
    sample = {"conversations": [{"from": "human", "value": value}, {"from": "gpt", "value": "the third"}]}
    images = {f"x.{index}.png": files["two.1.png" if index == 2 else "two.0.png"] for index in range(12)}
    write_shard(folder / "s.tar", {"x.json": json.dumps(sample).encode(), **images})
    (source,) = open_sources(f"wds:{folder}/s.tar", "unused")
    assert colours(source) == [[RED, RED, GREEN, *[RED] * 9]]


def test_hidden_files_are_ignored_and_repeated_names_are_errors(folder: Path) -> None:
    one = {"one.json": json.dumps(ONE).encode(), "one.png": (folder / "0.png").read_bytes()}
    write_shard(folder / "s.tar", {"._one.json": b"\0", "__MACOSX/._one.png": b"\0", **one})
    (source,) = open_sources(f"wds:{folder}/s.tar", "unused")
    assert colours(source) == [[RED]]
    with tarfile.open(folder / "twice.tar", "w") as tar:
        for _ in range(2):
            tar.add(folder / "0.png", "x.png")
    with pytest.raises(UserError, match=r"twice\.tar holds x\.png twice"):
        open_sources(f"wds:{folder}/twice.tar", "unused")
    with tarfile.open(folder / "s.tar.gz", "w:gz") as tar:
        tar.add(folder / "0.png", "x.png")
    with pytest.raises(UserError, match="It must be a tar file without compression"):
        open_sources(f"wds:{folder}/s.tar.gz", "unused")
