"""Open conversations: LLaVA's JSON with an image folder, webdataset shards, Hugging Face data sets, and mixtures.

All sources are indexed, so that the samples of an epoch are known, counted and checked before it begins.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sparse_vlm.data.conversations.formats import Record
from sparse_vlm.data.conversations.images import FolderImages, Images
from sparse_vlm.data.conversations.shards import read_shards
from sparse_vlm.data.conversations.tables import read_table
from sparse_vlm.data.specs import parse_spec
from sparse_vlm.errors import UserError, check_choice, one_line, optional_import
from sparse_vlm.files import read_json


@dataclass(frozen=True)
class Source:
    """Records and their images.

    Attributes:
        name: for messages.
        records: in one of the layouts of formats.py, not yet checked; see `parse_sample`.
        images: the images that the records name.
        weight: how often each sample occurs per epoch; see `open_sources`.
    """

    name: str
    records: Sequence[Record]
    images: Images
    weight: float = 1.0


@dataclass(frozen=True)
class MixtureEntry:
    """An entry of a mixture file. Paths are relative to the file's folder.

    Attributes:
        data_path: see `open_sources`, without mixtures.
        image_folder: of a JSON or JSONL file.
        weight: how often each sample occurs per epoch; see `open_sources`.
        video_folder: of a JSON or JSONL file; None: the image folder.
    """

    data_path: str
    image_folder: str = "."
    weight: float = 1.0
    video_folder: str | None = None


def open_sources(
    data_path: str | Path, image_folder: str | Path, video_folder: str | Path | None = None
) -> list[Source]:
    """Open the conversations of --data_path.

    | data_path                | conversations                                                                       |
    |--------------------------|-------------------------------------------------------------------------------------|
    | FILE.json, FILE.jsonl    | LLaVA's samples; "image" is relative to `image_folder`, "video" to `video_folder`    |
    | wds:SHARDS               | local tar files, {000..127} and "::" as in webdataset: KEY.json (a LLaVA sample,    |
    |                          | whose "image" is ignored) and its images, KEY.jpg, or KEY.0.jpg, KEY.1.jpg, …       |
    | hf:NAME[@CONFIG][:SPLIT] | a data set whose columns are the keys of a layout of formats.py                     |
    | FILE.yaml                | a mixture: a list of {data_path, image_folder, video_folder, weight} of the above   |

    A weight says how often each sample occurs per epoch: with 2 twice; with 0.5 half of the samples, drawn once by the
    seed; with 1.25 all samples and a quarter of them again.

    Args:
        data_path: see the table.
        image_folder, video_folder: for JSON and JSONL; by default, both are the same.
    """
    if Path(data_path).suffix.lower() not in (".yaml", ".yml"):
        videos = None if video_folder is None else str(video_folder)
        return [_open_source(MixtureEntry(str(data_path), str(image_folder), video_folder=videos))]
    file = Path(data_path)
    return [_open_source(entry, file.parent) for entry in read_mixture(file)]


def _open_source(entry: MixtureEntry, base: Path = Path()) -> Source:
    """Open an entry of a mixture whose paths are relative to `base`."""
    records: list[Record]
    images: Images
    prefix, name = parse_spec(entry.data_path, ("hf", "wds"), base)
    if prefix == "wds":
        records, images = read_shards(name, base)
    elif prefix == "hf":
        records, images = read_table(name, base)
    else:
        videos = entry.image_folder if entry.video_folder is None else entry.video_folder
        records, images = read_samples(base / name), FolderImages(base / entry.image_folder, base / videos)
    return Source(entry.data_path, records, images, entry.weight)


def read_samples(path: str | Path) -> list[Record]:
    """Read the records of a LLaVA JSON file (a list) or JSONL file (one record per line)."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"The data file {path} does not exist. Check --data_path.")
    records = _read_lines(path) if path.suffix.lower() == ".jsonl" else read_json(path)
    if not isinstance(records, list) or not records or not all(isinstance(record, dict) for record in records):
        raise UserError(f"The data file {path} must hold a non-empty list of LLaVA samples (objects).")
    return records


def _read_lines(path: Path) -> list[Record]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        # not splitlines(), which also splits at characters that a JSON string may contain, such as U+2028
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError) as error:
        raise UserError(f"The data file {path} is not valid JSON: {error}.") from None
    except OSError as error:
        raise UserError(f"The data file {path} cannot be read ({one_line(error)}).") from None


def read_mixture(file: Path) -> list[MixtureEntry]:
    """Read and check the entries of a mixture file."""
    with optional_import("Reading a mixture", "train"):
        import yaml
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"The mixture {file} cannot be read: {one_line(error)}") from error
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"The mixture {file} must be a list of entries (- data_path: …).")
    return [_entry(entry, f"entry {n} of the mixture {file}") for n, entry in enumerate(entries, start=1)]


def _entry(values: dict[str, Any], place: str) -> MixtureEntry:
    for key in values:
        check_choice(f"key of {place}", str(key), [field.name for field in fields(MixtureEntry)])
    if "data_path" not in values:
        raise UserError(f"There is no data_path in {place}.")
    entry = MixtureEntry(**values)
    for name in ("data_path", "image_folder", "video_folder"):
        if name in values and not isinstance(values[name], str):
            raise UserError(f"In {place}, {name} is {getattr(entry, name)!r}: it must be a path.")
    is_number = isinstance(entry.weight, int | float) and not isinstance(entry.weight, bool)
    if not is_number or not 0 < entry.weight < float("inf"):
        raise UserError(f"In {place}, weight is {entry.weight!r}: it must be a positive number.")
    return entry
