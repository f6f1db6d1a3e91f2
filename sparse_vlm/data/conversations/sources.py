"""Where conversations come from: LLaVA's JSON beside an image folder, webdataset shards, Hugging Face data sets, and
mixtures of them in a YAML file. All by index: an epoch's samples are known, counted and checked before it begins.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import yaml
from PIL import Image

from sparse_vlm.errors import UserError, one_line, unknown_choice
from sparse_vlm.image_files import open_image

Record = dict[str, Any]
ADDRESS = re.compile(r"data:|\w+://")


class Images(Protocol):
    """The pictures that records name."""

    def check(self, name: str) -> None:
        """Raises UserError if there is no such picture. Reads none."""

    def read(self, name: str) -> bytes:
        """The picture's file as it is. Raises UserError if it is missing."""

    def open(self, name: str) -> Image.Image:
        """The picture as RGB. Raises UserError if it is missing or damaged."""


@dataclass(frozen=True)
class Source:
    """Records in one of the layouts of formats.py, unchecked (`parse_sample` checks each), and their pictures.

    Attributes:
        name: for messages.
        records: see sparse_vlm/data/conversations/formats.py.
        images: what the records' "image" or "images" name.
        weight: how often a sample comes in an epoch; see `open_sources`.
    """

    name: str
    records: Sequence[Record]
    images: Images
    weight: float = 1.0


@dataclass(frozen=True)
class MixtureEntry:
    """An entry of a mixture file; relative paths start at the file's folder."""

    data_path: str
    image_folder: str = "."
    weight: float = 1.0


def open_sources(data_path: str | Path, image_folder: str | Path) -> list[Source]:
    """Conversations from anywhere.

    | data_path            | what                                                                            |
    |----------------------|---------------------------------------------------------------------------------|
    | FILE.json, .jsonl    | LLaVA's samples; "image" is relative to `image_folder`                          |
    | wds:SHARDS           | local tar files, {000..127} and "::" as in webdataset: KEY.json (a LLaVA sample,  |
    |                      | whose own "image" does not count) beside its pictures, KEY.jpg, or KEY.0.jpg …  |
    | hf:NAME[@CONFIG][:SPLIT] | a data set with the columns of a layout of formats.py                          |
    | FILE.yaml            | a mixture: a list of {data_path, image_folder, weight} of the above             |

    A weight says how often each sample comes in an epoch: 2 twice, 0.5 a half of them (drawn once, by the seed), 1.25
    all and a quarter again.

    Args:
        data_path: see the table.
        image_folder: for JSON and JSONL.

    Raises:
        UserError: something is missing, unreadable, or not of this form.
    """
    if Path(data_path).suffix.lower() not in (".yaml", ".yml"):
        return [_open_source(str(data_path), Path(image_folder))]
    sources = []
    for entry in read_mixture(Path(data_path)):
        source = _open_source(entry.data_path, Path(data_path).parent / entry.image_folder, Path(data_path).parent)
        sources.append(Source(source.name, source.records, source.images, entry.weight))
    return sources


def read_mixture(file: Path) -> list[MixtureEntry]:
    """The entries of a mixture file.

    Raises:
        UserError: the file is missing or no list of entries; an entry has an unknown key, no data_path, a path that is
            no text, or a weight that is no positive number.
    """
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"The mixture {file} cannot be read: {one_line(error)}") from error
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"The mixture {file} must be a list of entries (- data_path: …).")
    return [_mixture_entry(entry, f"entry {n} of the mixture {file}") for n, entry in enumerate(entries, start=1)]


def _mixture_entry(values: dict[str, Any], place: str) -> MixtureEntry:
    """The entry that YAML's mapping says; `place` names it."""
    known = [field.name for field in fields(MixtureEntry)]
    for key in values:
        if key not in known:
            raise unknown_choice(f"key of {place}", str(key), known)
    if "data_path" not in values:
        raise UserError(f"There is no data_path in {place}.")
    entry = MixtureEntry(**values)
    for name in ("data_path", "image_folder"):
        if not isinstance(getattr(entry, name), str):
            raise UserError(f"In {place}, {name} is {getattr(entry, name)!r}: it must be a path.")
    is_number = isinstance(entry.weight, int | float) and not isinstance(entry.weight, bool)
    if not is_number or not 0 < entry.weight < float("inf"):
        raise UserError(f"In {place}, weight is {entry.weight!r}: it must be a positive number.")
    return entry


def _open_source(data_path: str, image_folder: Path, base: Path = Path()) -> Source:
    prefix, colon, name = data_path.partition(":")
    if colon and prefix == "wds":
        from sparse_vlm.data.conversations.archives import read_shards

        return Source(data_path, *read_shards("::".join(str(base / part) for part in name.split("::"))))
    if colon and prefix == "hf":
        from sparse_vlm.data.conversations.archives import read_table

        return Source(data_path, *read_table(str(base / name) if (base / name).is_dir() else name))
    return Source(data_path, read_samples(base / data_path), FolderImages(image_folder))


def read_samples(path: str | Path) -> list[Record]:
    """The records of a LLaVA JSON (one list) or JSONL file.

    Raises:
        UserError: no such file, not JSON, or not a list of objects.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"The data file {path} does not exist. Check --data_path.")
    try:
        text = path.read_text(encoding="utf-8-sig")  # programs on Windows put a mark before the first letter
        if path.suffix.lower() == ".jsonl":
            # not splitlines(), which also cuts at U+2028 and others, which a string may contain
            records = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            records = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"The data file {path} is not valid JSON: {error}.") from None
    except OSError as error:
        raise UserError(f"The data file {path} cannot be read ({one_line(error)}).") from None
    if not isinstance(records, list) or not records or not all(isinstance(record, dict) for record in records):
        raise UserError(f"The data file {path} must hold a non-empty list of LLaVA samples (objects).")
    return records


class FolderImages:
    """Files below a folder; a name is a path relative to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def check(self, name: str) -> None:
        if ADDRESS.match(name):
            raise UserError(f"the image {name[:60]!r} is an address: put its file below --image_folder.")
        try:
            problem = None if (self.folder / name).is_file() else "does not exist"
        except OSError as error:  # too long for a name, or a folder that may not be read
            problem = f"cannot be read ({one_line(error)})"
        if problem:
            raise UserError(
                f"the image {self.folder / name} {problem}. Check --image_folder, or use --on_bad_sample skip."
            )

    def read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise UserError(f"The image {self.folder / name} cannot be read ({one_line(error)}).") from error

    def open(self, name: str) -> Image.Image:
        return open_image(self.folder / name)
