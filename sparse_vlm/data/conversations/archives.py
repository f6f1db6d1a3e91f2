"""Conversations with their pictures in one place: webdataset's tar files, tables of Hugging Face data sets."""

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
from PIL import Image
from webdataset.shardlists import expand_urls

from sparse_vlm.data.conversations.formats import IMAGE_KEYS, NOTE_KEYS, TURN_KEYS, check_keys
from sparse_vlm.data.images.files import is_hidden
from sparse_vlm.data.images.hf_tables import open_rows, undecoded
from sparse_vlm.data.images.sets import cell_bytes
from sparse_vlm.errors import UserError, one_line, unknown_choice
from sparse_vlm.image_files import decode_image, readable_endings

Record = dict[str, Any]


class Member(NamedTuple):
    """A file inside a tar file that is not compressed."""

    shard: Path
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Its content."""
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


class ShardImages:
    """Pictures inside tar files, read where they lie."""

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}

    def add(self, member: Member) -> str:
        """The name of one more picture."""
        name = f"{member.name} of {member.shard}"
        self.members[name] = member
        return name

    def check(self, name: str) -> None:
        """Nothing: the names come from the tar files."""

    def read(self, name: str) -> bytes:
        """The picture's file."""
        return self.members[name].read()

    def open(self, name: str) -> Image.Image:
        """The picture as RGB. Raises UserError if it is damaged."""
        return decode_image(self.read(name), name)


def read_shards(spec: str) -> tuple[list[Record], ShardImages]:
    """The samples of local tar files: KEY.json, a LLaVA sample, and the pictures beside it in the order of their names.

    Args:
        spec: paths in webdataset's notation.

    Raises:
        UserError: a shard is missing, damaged or compressed, or a sample has no sound JSON.
    """
    records: list[Record] = []
    images = ShardImages()
    for shard in map(Path, expand_urls(spec)):
        for key, files in _samples(shard).items():
            endings = [ending for ending in files if Path(f"x.{ending}").suffix in readable_endings()]
            endings.sort(key=_numbered)
            record = _record(shard, key, files)
            record = {"id": key} | {name: value for name, value in record.items() if name not in IMAGE_KEYS}
            records.append(record | {"image": [images.add(files[ending]) for ending in endings]})
    if not records:
        raise UserError(f"There are no samples in the shards {spec}.")
    return records, images


def _numbered(ending: str) -> list[tuple[int, str]]:
    """A key that sorts "2.jpg" before "10.jpg"."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", ending)]


def _samples(shard: Path) -> dict[str, dict[str, Member]]:
    """{key: {ending: file}} of a tar file, without hidden files."""
    samples: dict[str, dict[str, Member]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:  # not compressed: its files can be read alone
            for info in filter(tarfile.TarInfo.isreg, tar):
                if any(is_hidden(part) for part in info.name.removeprefix("./").split("/")):
                    continue
                folder, slash, file = info.name.rpartition("/")
                key, _, ending = file.partition(".")
                member = Member(shard, info.name, info.offset_data, info.size)
                if member != samples.setdefault(folder + slash + key, {}).setdefault(ending.lower(), member):
                    raise UserError(f"The shard {shard} holds {info.name} twice. Give its samples keys of their own.")
    except (OSError, tarfile.TarError, EOFError) as error:
        says = f"({one_line(error)}). It must be a tar file without compression."
        raise UserError(f"The shard {shard} cannot be read {says}") from error
    return samples


def _record(shard: Path, key: str, files: dict[str, Member]) -> Record:
    if "json" not in files:
        raise UserError(f"The sample {key} of {shard} has no {key}.json; its files end in {', '.join(files)}.")
    try:
        record = json.loads(files["json"].read())
    except ValueError as error:
        raise UserError(f"{key}.json of {shard} is not valid JSON: {error}.") from None
    if not isinstance(record, dict):
        raise UserError(f"{key}.json of {shard} must hold a LLaVA sample (an object).")
    return record


class TableImages:
    """Images in a column of a data set, one or a list of them a row; a name is ROW or ROW/PLACE."""

    def __init__(self, rows: Any, column: str) -> None:
        self.rows, self.column = rows, column

    def check(self, name: str) -> None:
        """Nothing: the names come from the table."""

    def read(self, name: str) -> bytes:
        """The image's file. Raises UserError if the cell is empty."""
        row, _, place = name.partition("/")
        cell = self.rows[int(row)][self.column]
        return cell_bytes(cell[int(place)] if place else cell, f"of row {name}")

    def open(self, name: str) -> Image.Image:
        """The image as RGB. Raises UserError if it is damaged."""
        return decode_image(self.read(name), f"of row {name}")


def read_table(name: str) -> tuple[list[Record], TableImages]:
    """The samples of a data set whose columns are the keys of one of the layouts in `formats.py`.

    Args:
        name: NAME[:SPLIT] of the hub or a directory.

    Raises:
        UserError: it cannot be opened, has a column that is not understood, or none of turns.
    """
    rows = open_rows(name)
    columns = rows.column_names
    check_keys(columns, f"The data set {name}")
    if not set(columns) & set(TURN_KEYS):
        raise unknown_choice(f"column of {name}; a column is missing:", "conversations", columns)
    texts = rows.select_columns([column for column in columns if column not in (*IMAGE_KEYS, *NOTE_KEYS)])
    records: list[Record] = [
        {"id": f"row {index}", **{key: value for key, value in row.items() if value is not None}}
        for index, row in enumerate(texts)
    ]
    column = next((column for column in IMAGE_KEYS if column in columns), "image")
    images = undecoded(rows, column, name) if column in columns else None
    for index, names in _named(images, column):
        records[index]["image"] = names
    return records, TableImages(images, column)


def _named(images: Any, column: str) -> Iterator[tuple[int, list[str]]]:
    """Each row that has images, and their names; none is decoded."""
    if images is None:
        return
    batches = images.with_format("arrow").iter(batch_size=1000)
    cells = (cell for batch in batches for cell in batch.column(column))
    for index, cell in enumerate(cells):
        if cell.is_valid:
            listed = isinstance(cell, pyarrow.ListScalar | pyarrow.LargeListScalar)
            yield index, [f"{index}/{place}" for place in range(len(cell))] if listed else [str(index)]
