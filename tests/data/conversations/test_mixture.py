"""Mixtures of sources, and bad ones."""

from pathlib import Path

import datasets
import pytest

from sparse_vlm.data.conversations.sources import open_sources, read_mixture
from sparse_vlm.errors import UserError
from tests.data.conversations.records import GREEN, NONE, RED, colours, shard_files, write_shard


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


def test_a_table_may_be_relative_to_the_mixture(folder: Path) -> None:
    table = datasets.Dataset.from_dict({"conversations": [NONE["conversations"]]})
    datasets.DatasetDict({"train": table, "more": table.select([0, 0])}).save_to_disk(folder / "tables/table")
    (folder / "tables/mixture.yaml").write_text("- data_path: hf:table:more\n")
    (source,) = open_sources(folder / "tables/mixture.yaml", "unused")
    assert len(source.records) == 2
