"""Conversations in Hugging Face data sets."""

from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from sparse_vlm.data.conversations.sources import open_sources
from sparse_vlm.errors import UserError
from tests.data.conversations.records import GREEN, NONE, ONE, colours


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("kind", ["bytes", "struct", "path"])
def test_tables_with_undeclared_image_columns(folder: Path, kind: str, listed: bool) -> None:
    """Tables as pandas and pyarrow write them."""
    data = (folder / "1.png").read_bytes()
    cell = {"bytes": data, "struct": {"bytes": data, "path": None}, "path": str(folder / "1.png")}[kind]
    (folder / "table").mkdir()
    table = pyarrow.table({"image": [[cell] if listed else cell], "conversations": [ONE["conversations"]]})
    pyarrow.parquet.write_table(table, folder / "table/a.parquet")
    (source,) = open_sources(f"hf:{folder}/table", "unused")
    assert colours(source) == [[GREEN]]


def test_a_column_without_images_is_named(folder: Path) -> None:
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
