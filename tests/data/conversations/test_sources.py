"""Conversations in JSON files, and bad files and specs."""

import json
from pathlib import Path

import pytest

from sparse_vlm.data.conversations.sources import open_sources, read_samples
from sparse_vlm.errors import UserError
from tests.data.conversations.records import GREEN, NONE, ONE, RED, colours, record


def test_json(folder: Path) -> None:
    (source,) = open_sources(folder / "all.json", folder)
    assert colours(source) == [[RED], [RED, GREEN], []]


def test_json_and_jsonl_hold_the_same(tmp_path: Path) -> None:
    records = [ONE, NONE]
    (tmp_path / "a.json").write_text(json.dumps(records))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    assert read_samples(tmp_path / "a.json") == read_samples(tmp_path / "a.jsonl") == records


def test_lines_of_jsonl_end_at_line_feeds_only(tmp_path: Path) -> None:
    """A JSON string may contain U+2028 and U+0085, at which str.splitlines also splits."""
    records = [record("a\u2028b\x85c", "d"), NONE]
    lines = [json.dumps(one, ensure_ascii=False) for one in records]
    (tmp_path / "a.jsonl").write_text("\n\n".join(lines), encoding="utf-8")
    assert read_samples(tmp_path / "a.jsonl") == records


def test_files_written_on_windows(folder: Path) -> None:
    """A byte order mark, upper-case suffixes."""
    (folder / "a.json").write_text(json.dumps([ONE]), encoding="utf-8-sig")
    (folder / "b.JSONL").write_text(json.dumps(ONE) + "\n" + json.dumps(ONE), encoding="utf-8-sig")
    (folder / "c.YAML").write_text("- data_path: a.json\n- data_path: b.JSONL\n")
    assert [len(source.records) for source in open_sources(folder / "c.YAML", "unused")] == [1, 2]


@pytest.mark.parametrize("name", ["https://example.org/a.png", "data:image/png;base64," + "A" * 9000, "s3://a/b.png"])
def test_addresses_are_not_files(folder: Path, name: str) -> None:
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
