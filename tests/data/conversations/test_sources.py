"""The same conversations from JSON, shards, tables and mixtures; what is wrong with them is named."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from sparse_vlm.data.conversations.mixture import read_mixture
from sparse_vlm.data.conversations.samples import parse_sample
from sparse_vlm.data.conversations.sources import Source, open_sources, read_samples
from sparse_vlm.errors import UserError
from tests.data.conversations.records import record

ONE = record("<image>\nWhat is it?", "red", image="0.png", id="one")
TWO = record("<image> or <image>?", "the first", image=["0.png", "1.png"], id="two")
NONE = record("Q", "A", image=None, id="none")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, colour in enumerate(("red", "green")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{index}.png")
    (tmp_path / "all.json").write_text(json.dumps([ONE, TWO, NONE]))
    return tmp_path


def colours(source: Source) -> list[list[Any]]:
    """Of the pictures of each sample."""
    samples = [parse_sample(one, index) for index, one in enumerate(source.records)]
    for sample in samples:
        for name in sample.images:
            source.images.check(name)
    return [[source.images.open(name).getpixel((0, 0)) for name in sample.images] for sample in samples]


RED, GREEN = (255, 0, 0), (0, 128, 0)


def test_json(folder: Path) -> None:
    (source,) = open_sources(folder / "all.json", folder)
    assert colours(source) == [[RED], [RED, GREEN], []]


def test_json_and_jsonl_hold_the_same(tmp_path: Path) -> None:
    records = [ONE, NONE]
    (tmp_path / "a.json").write_text(json.dumps(records))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    assert read_samples(tmp_path / "a.json") == read_samples(tmp_path / "a.jsonl") == records


def test_lines_of_jsonl_end_at_line_feeds_alone(tmp_path: Path) -> None:
    """U+2028 and U+0085, which Python also counts as ends of lines, may stand in a JSON string as they are."""
    records = [record("a\u2028b\x85c", "d"), NONE]
    lines = [json.dumps(one, ensure_ascii=False) for one in records]
    (tmp_path / "a.jsonl").write_text("\n\n".join(lines), encoding="utf-8")
    assert read_samples(tmp_path / "a.jsonl") == records


def test_files_as_windows_writes_them(folder: Path) -> None:
    """A mark before the first letter, endings in capitals."""
    (folder / "a.json").write_text(json.dumps([ONE]), encoding="utf-8-sig")
    (folder / "b.JSONL").write_text(json.dumps(ONE) + "\n" + json.dumps(ONE), encoding="utf-8-sig")
    (folder / "c.YAML").write_text("- data_path: a.json\n- data_path: b.JSONL\n")
    assert [len(source.records) for source in open_sources(folder / "c.YAML", "unused")] == [1, 2]


@pytest.mark.parametrize("name", ["https://example.org/a.png", "data:image/png;base64," + "A" * 9000, "s3://a/b.png"])
def test_addresses_are_no_files(folder: Path, name: str) -> None:
    (folder / "a.json").write_text(json.dumps([ONE | {"image": name}]))
    (source,) = open_sources(folder / "a.json", folder)
    with pytest.raises(UserError, match="is an address: download the file to --image_folder") as error:
        source.images.check(name)
    assert len(str(error.value)) < 200


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.json does not exist"):
        read_samples(tmp_path / "missing.json")
    (tmp_path / "b.json").write_text("[{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_samples(tmp_path / "b.json")
    (tmp_path / "c.json").write_text("[]")
    with pytest.raises(UserError, match="non-empty list"):
        read_samples(tmp_path / "c.json")
    (tmp_path / "d.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="not valid JSON: maximum recursion depth"):
        read_samples(tmp_path / "d.json")


def write_shard(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def shard_files(folder: Path) -> dict[str, bytes]:
    red, green = ((folder / f"{index}.png").read_bytes() for index in range(2))
    texts = {name: json.dumps(one).encode() for name, one in (("one", ONE), ("two", TWO), ("none", NONE))}
    one = {"a/one.json": texts["one"], "a/one.png": red}
    return one | {"two.json": texts["two"], "two.1.png": green, "two.0.png": red, "none.json": texts["none"]}


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


def test_a_damaged_picture_in_a_shard_is_named(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.tar", {"x.json": json.dumps(ONE).encode(), "x.png": b"\x89PNG no"})
    (source,) = open_sources(f"wds:{tmp_path}/s.tar", "unused")
    with pytest.raises(UserError, match=r"The image x\.png of .*s\.tar cannot be read"):
        colours(source)
    with pytest.raises(UserError, match=r"missing\.tar cannot be read"):
        open_sources(f"wds:{tmp_path}/missing.tar", "unused")


def test_many_pictures_of_a_sample_come_in_the_order_of_their_numbers(folder: Path) -> None:
    """Not 0, 1, 10, 11, 2, …"""
    files = shard_files(folder)
    value = "<image>" * 12 + "Which is green?"
    sample = {"conversations": [{"from": "human", "value": value}, {"from": "gpt", "value": "the third"}]}
    pictures = {f"x.{index}.png": files["two.1.png" if index == 2 else "two.0.png"] for index in range(12)}
    write_shard(folder / "s.tar", {"x.json": json.dumps(sample).encode(), **pictures})
    (source,) = open_sources(f"wds:{folder}/s.tar", "unused")
    assert colours(source) == [[RED, RED, GREEN, *[RED] * 9]]


def test_hidden_files_in_shards_are_left_out_and_names_that_come_twice_refused(folder: Path) -> None:
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


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("kind", ["bytes", "struct", "path"])
def test_tables_whose_images_are_not_declared_as_such(folder: Path, kind: str, listed: bool) -> None:
    """As pandas and pyarrow write them."""
    data = (folder / "1.png").read_bytes()
    cell = {"bytes": data, "struct": {"bytes": data, "path": None}, "path": str(folder / "1.png")}[kind]
    (folder / "table").mkdir()
    table = pyarrow.table({"image": [[cell] if listed else cell], "conversations": [ONE["conversations"]]})
    pyarrow.parquet.write_table(table, folder / "table/a.parquet")
    (source,) = open_sources(f"hf:{folder}/table", "unused")
    assert colours(source) == [[GREEN]]


def test_a_column_that_holds_no_images_is_named(folder: Path) -> None:
    (folder / "table").mkdir()
    table = pyarrow.table({"image": [7], "conversations": [ONE["conversations"]]})
    pyarrow.parquet.write_table(table, folder / "table/a.parquet")
    with pytest.raises(UserError, match=r"The column 'image' of .*table does not hold images"):
        open_sources(f"hf:{folder}/table", "unused")


def test_hugging_face_table(folder: Path) -> None:
    cells = [{"bytes": (folder / "1.png").read_bytes(), "path": None}, None]
    turns = [one["conversations"] for one in (ONE, NONE)]
    text = datasets.List({"from": datasets.Value("string"), "value": datasets.Value("string")})
    features = datasets.Features({"image": datasets.Image(), "conversations": text})
    table = datasets.Dataset.from_dict({"image": cells, "conversations": turns}, features=features)
    table.save_to_disk(folder / "table")
    (source,) = open_sources(f"hf:{folder}/table", "unused")
    assert colours(source) == [[GREEN], []]
    table.remove_columns("conversations").save_to_disk(folder / "other")
    with pytest.raises(UserError, match="'conversations'"):
        open_sources(f"hf:{folder}/other", "unused")


def test_mixture(folder: Path) -> None:
    write_shard(folder / "s.tar", shard_files(folder))
    (folder / "lists").mkdir()
    mixture = folder / "lists" / "mixture.yaml"
    mixture.write_text(
        "- data_path: ../all.json\n  image_folder: ..\n  weight: 0.5\n- data_path: wds:../s.tar\n  weight: 2\n"
    )
    sources = open_sources(mixture, "unused")
    assert [source.weight for source in sources] == [0.5, 2]
    assert colours(sources[0]) == colours(sources[1]) == [[RED], [RED, GREEN], []]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("data_path: a.json", "must be a list of entries"),
        ("- data_path: a.json\n  wieght: 2", "Unknown key of entry 1 of the mixture .*'wieght'. Did you mean 'weight'"),
        ("- weight: 2", "There is no data_path in entry 1 of the mixture"),
        ("- data_path: a.json\n  weight: 0", "weight is 0: it must be a positive number"),
        ("- data_path: a.json\n  weight: true", "In entry 1 of the mixture .* weight is True"),
        ("- data_path: 3", "data_path is 3: it must be a path"),
        ("- data_path: a.json\n- data_path: b\n  image_folder: null", "In entry 2 .* image_folder is None"),
        ("- {", "cannot be read"),
    ],
)
def test_bad_mixtures_are_named(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_mixture(tmp_path / "m.yaml")


def test_a_mixture_finds_a_table_and_its_split_beside_it(folder: Path) -> None:
    table = datasets.Dataset.from_dict({"conversations": [NONE["conversations"]]})
    datasets.DatasetDict({"train": table, "more": table.select([0, 0])}).save_to_disk(folder / "tables/table")
    (folder / "tables/mixture.yaml").write_text("- data_path: hf:table:more\n")
    (source,) = open_sources(folder / "tables/mixture.yaml", "unused")
    assert len(source.records) == 2


@pytest.mark.parametrize(
    ("data_path", "sentence"),
    [
        ("", "--data_path '' names no data"),
        ("wds:", "--data_path 'wds:' names no data"),
        ("wdz:a.tar", r"Unknown prefix of --data_path 'wdz'\. Did you mean 'wds'.* and wdz:a\.tar does not exist"),
        ("hf-stream:name", "Unknown prefix of --data_path 'hf-stream'.*Choices: hf, wds"),
        ("wds:{0..", "The shards '{0..' are not in webdataset's notation"),
        ("wds:https://example.org/a.tar", r"The shard https://example\.org/a\.tar is not a local file\. Download it"),
        ("nowhere.json", r"nowhere\.json does not exist\. Check --data_path"),
    ],
)
def test_bad_specs_are_named(data_path: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        open_sources(data_path, "unused")
