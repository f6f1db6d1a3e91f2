"""Conversations and their images in tables of Hugging Face data sets."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from sparse_vlm.data.conversations.formats import IMAGE_KEYS, NOTE_KEYS, TURN_KEYS, VIDEO_KEYS, Record, check_keys
from sparse_vlm.data.conversations.images import Images
from sparse_vlm.data.images.hf_tables import cell_bytes, open_rows, split_name, undecoded
from sparse_vlm.errors import UserError, unknown_choice
from sparse_vlm.image_files import decode_image


class TableImages(Images):
    """Images in a column of a data set, one or a list per row. A name is ROW or ROW/PLACE."""

    def __init__(self, rows: Any, column: str) -> None:
        self.rows, self.column = rows, column

    def stamp(self, name: str) -> None:
        """A cell may name a file anywhere, so nothing short of reading it tells whether it has changed."""

    def read(self, name: str) -> bytes:
        row, _, place = name.partition("/")
        cell = self.rows[int(row)][self.column]
        return cell_bytes(cell[int(place)] if place else cell, f"of row {name}")

    def open(self, name: str) -> Image.Image:
        return decode_image(self.read(name), f"of row {name}")


def read_table(name: str, base: Path = Path()) -> tuple[list[Record], TableImages]:
    """Read the samples of a data set whose columns are the keys of a layout in `formats.py`.

    Args:
        name: NAME[@CONFIG][:SPLIT] of the hub or a directory.
        base: the folder that directories are relative to.
    """
    if Path(split_name(str(base / name))[0]).is_dir():
        name = str(base / name)
    rows = open_rows(name)
    columns = rows.column_names
    check_keys(columns, f"The data set {name}")
    if video := next((column for column in columns if column in VIDEO_KEYS), None):
        raise UserError(
            f"The data set {name} has a column {video!r}: videos are read from files. Export it to LLaVA's JSON with "
            "the paths of the videos, or remove the column."
        )
    if not set(columns) & set(TURN_KEYS):
        raise unknown_choice(f"column of {name}; a column is missing:", "conversations", columns)
    texts = rows.select_columns([column for column in columns if column not in (*IMAGE_KEYS, *NOTE_KEYS)])
    records: list[Record] = [
        {"id": f"row {index}", **{key: value for key, value in row.items() if value is not None}}
        for index, row in enumerate(texts)
    ]
    column = next((column for column in IMAGE_KEYS if column in columns), "image")
    images = undecoded(rows, column, name) if column in columns else None
    for index, names in _image_names(images, column):
        records[index]["image"] = names
    return records, TableImages(images, column)


def _image_names(images: Any, column: str) -> Iterator[tuple[int, list[str]]]:
    """Iterate over the rows that have images, without decoding any: (row, names of its images)."""
    import pyarrow

    if images is None:
        return
    batches = images.with_format("arrow").iter(batch_size=1000)
    cells = (cell for batch in batches for cell in batch.column(column))
    for index, cell in enumerate(cells):
        if cell.is_valid:
            listed = isinstance(cell, pyarrow.ListScalar | pyarrow.LargeListScalar)
            yield index, [f"{index}/{place}" for place in range(len(cell))] if listed else [str(index)]
