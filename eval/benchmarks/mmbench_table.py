"""MMBench's official table (.tsv): a row for each rotation of a question's options, with its image in base64."""

import base64
import binascii
import csv
import sys
from pathlib import Path

from eval.scoring.protocol import EncodedImage
from sparse_vlm.errors import UserError

LETTERS = "ABCD"
# cells that count as empty, as in pandas, which the official scorers use
ABSENT = ("", "nan", "none", "na", "n/a", "null", "<na>")
Row = dict[str, str]


def read_table(path: Path) -> list[Row]:
    """Read the rows of the official table, by column.

    Raises:
        UserError: no such file, or not MMBench's table.
    """
    csv.field_size_limit(sys.maxsize)  # an image is one cell
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", restval=""))
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a table of tab-separated values ({error}).") from None
    missing = {"index", "question", "image", "A", "B"} - set(rows[0] if rows else ())
    if missing:
        raise UserError(f"{path} has no column {sorted(missing)[0]!r}. Expected MMBench's official .tsv.")
    for row in rows:
        if not row["index"].isdigit():
            raise UserError(f"{path}: an index is {row['index']!r}, expected a number.")
    return rows


def cell(row: Row, column: str) -> str:
    """Return a cell's text; "" if it is absent or says so."""
    text = row.get(column) or ""
    return "" if text.lower() in ABSENT else text


def options(row: Row) -> dict[str, str]:
    """Return letter -> option, up to the first missing one."""
    found = {}
    for letter in LETTERS:
        if not cell(row, letter):
            break
        found[letter] = cell(row, letter)
    return found


def image_cell(row: Row, by_index: dict[int, Row]) -> str:
    """Return a row's image in base64. A rotation may name the row that holds it instead."""
    text = row["image"]
    return by_index[int(text)]["image"] if text.isdigit() and int(text) in by_index else text


def decode_image(index: int, encoded: str, path: Path) -> EncodedImage:
    """Decode the image of a question.

    Raises:
        UserError: it is not base64.
    """
    try:
        return EncodedImage(f"{path.name} {index}", base64.b64decode(encoded, validate=True))
    except binascii.Error as error:
        raise UserError(f"{path}: the image of index {index} is not base64 ({error}).") from None
