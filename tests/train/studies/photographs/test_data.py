"""Splits on the disk: complete, disjoint, and refused with one sentence."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sparse_vlm.image_files import open_image
from tests.train.studies.photographs.conftest import png, write_shard
from train.studies.photographs.data import main

SHARDS = {"training": "train-{00..01}.tar", "validation": "val-00.tar", "test": "val-01.tar"}
Write = Callable[..., int]


@pytest.fixture
def write(shards: Path, tmp_path: Path) -> Write:
    """Write a split into tmp_path/data."""

    def run(split: str, images: int = 10, spec: str | None = None, *more: str) -> int:
        words = [split, "--photographs", str(shards), "--shards", spec or SHARDS[split], "--images", str(images)]
        return main([*words, "--output_dir", str(tmp_path / "data"), "--texts", "5", "--conversations", "6", *more])

    return run


def names(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_each_split_has_its_own_photographs(write: Write, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for split in SHARDS:
        assert write(split) == 0
    splits = [names(data / split) for split in SHARDS]
    assert [len(split) for split in splits] == [10, 10, 10]
    assert len(set.union(*splits)) == 30
    for file in ("captions", "instruct"):
        records = json.loads((data / f"{file}.json").read_text())
        assert {record["image"] for record in records} <= splits[0]
    for split, images in zip(("validation", "test"), splits[1:], strict=True):
        lines = [json.loads(line) for line in (data / f"{split}.jsonl").read_text().splitlines()]
        assert {line["image"] for line in lines} == images
    assert names(data / "blank") == splits[2]
    assert len({open_image(data / "blank" / name).tobytes() for name in splits[2]}) == 1


def test_a_split_is_the_same_again(write: Write, tmp_path: Path) -> None:
    assert write("training", 20) == 0
    first = {name: (tmp_path / "data" / name).read_bytes() for name in names(tmp_path / "data")}
    assert write("training", 30) == 0
    assert write("training", 20) == 0
    assert {name: (tmp_path / "data" / name).read_bytes() for name in names(tmp_path / "data")} == first
    assert write("training", 20, None, "--seed", "1") == 0
    assert (tmp_path / "data" / "captions.json").read_bytes() != first["captions.json"]


@pytest.mark.parametrize("earlier", ["training", "validation"])
def test_a_test_photograph_seen_before_is_refused(
    write: Write, shards: Path, tmp_path: Path, earlier: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also under another name: what counts is the content of the file."""
    assert write(earlier, 30 if earlier == "training" else 10) == 0
    seen = sorted((tmp_path / "data" / earlier).rglob("*.png"))[3]
    write_shard(shards / "leak.tar", {"n03028079/a.png": png(900), "n03028079/b.png": seen.read_bytes()})
    capsys.readouterr()
    assert write("test", 2, "leak.tar") == 2
    assert capsys.readouterr().err == (
        f"error: The test photograph n03028079/b.png of {shards}/leak.tar is also a {earlier} photograph. Remove it "
        "from one of the shards: no photograph may be in two splits.\n"
    )
    assert not (tmp_path / "data" / "test.jsonl").exists()
    assert not (tmp_path / "data" / "test").exists()


def test_refusals(write: Write, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shard(shards / "cat.tar", {"n02124075/cat.png": png(900)})
    write_shard(shards / "flat.tar", {"cat.png": png(900)})
    (shards / "broken.tar").write_bytes(b"no tar")
    twice = {"n03028079/a.png": png(900)}
    write_shard(shards / "twice-0.tar", twice)
    write_shard(shards / "twice-1.tar", twice)
    for spec, message in [
        ("train-{00..05}.tar", "There is no shard {}/train-02.tar (4 of 6 in 'train-{{00..05}}.tar' are missing)"),
        ("cat.tar", "Unknown WordNet id (the folder of n02124075/cat.png of {}/cat.tar) 'n02124075'"),
        ("flat.tar", "lies in no folder, which would be its class"),
        ("broken.tar", "The shard {}/broken.tar cannot be read to its end"),
        ("twice-{0..1}.tar", "The photograph n03028079/a.png is in twice-{{0..1}}.tar twice"),
        ("s3://bucket/a.tar", "is not a local file"),
    ]:
        assert write("training", 1, spec) == 2
        error = capsys.readouterr().err
        assert message.format(shards) in error
        assert error.count("\n") == 1
