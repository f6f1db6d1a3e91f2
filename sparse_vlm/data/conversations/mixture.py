"""Mixtures of conversation sources: a YAML list of sources with weights."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sparse_vlm.errors import UserError, check_choice, one_line, optional_import


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
