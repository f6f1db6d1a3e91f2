"""Hugging Face data sets with images: from the hub or a directory, indexed or streamed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_vlm.errors import UserError, check_choice, one_line, optional_import

if TYPE_CHECKING:
    import datasets

DEFAULT_SPLIT = "train"
SPLIT = re.compile(r":([^:\[\]]*(?:\[[^\]]*\])?)$")  # at the end of a name; a slice, as in train[:50%], has a colon too
SAVED = ("state.json", "dataset_dict.json")  # written by `save_to_disk` for a single split and for several


def open_table(name: str, image_column: str | None) -> tuple[datasets.Dataset, str]:
    """Open an indexed data set and select its image column, which is not decoded.

    Args:
        name: NAME[@CONFIG][:SPLIT] of the hub or a directory.
        image_column: None: the only column of images.

    Returns:
        (rows of the column alone, its name).
    """
    rows, _ = _open(name, streaming=False)
    column = _image_column(name, rows.features, image_column)
    if not len(rows):
        raise UserError(f"The data set {name} is empty.")
    if _is_list(rows.features[column]):
        raise UserError(f"The column {column!r} of {name} holds lists. Choose a column with one image per row.")
    return undecoded(rows, column, name), column


def open_rows(name: str) -> datasets.Dataset:
    """Open an indexed data set with all its columns.

    Args:
        name: NAME[@CONFIG][:SPLIT] of the hub or a directory.
    """
    return _open(name, streaming=False)[0]


def open_stream(name: str, image_column: str | None) -> tuple[datasets.IterableDataset, str, int | None]:
    """Open a data set to be read in sequence.

    Args:
        name, image_column: see `open_table`.

    Returns:
        (rows of the image column alone, not decoded; its name; the number of rows, where it is known).
    """
    rows, images = _open(name, streaming=True)
    column = _image_column(name, rows.features, image_column)
    return rows.select_columns([column]).cast_column(column, _undecoded_image()), column, images


def undecoded(rows: datasets.Dataset, column: str, name: str) -> datasets.Dataset:
    """Select a column of images, or of lists of images, as cells that `cell_bytes` reads.

    Args:
        rows: a data set.
        column: holds images, encoded images, {"bytes", "path"} or paths.
        name: names the data set in the error.
    """
    image = _undecoded_image()
    feature = rows.features[column]
    try:
        return rows.select_columns([column]).cast_column(column, type(feature)(image) if _is_list(feature) else image)
    except (TypeError, ValueError, NotImplementedError) as error:  # pyarrow's errors are subclasses of these
        raise UserError(f"The column {column!r} of {name} does not hold images ({one_line(error)}).") from error


def cell_bytes(cell: dict[str, Any] | None, name: str) -> bytes:
    """Return the encoded image of a cell, {"bytes", "path"}, that is not decoded. The path may be remote.

    Args:
        cell: of a column that `undecoded` selects.
        name: names the image in the error.

    Raises:
        UserError: the cell is empty or its file cannot be read.
    """
    if cell is None or (cell["bytes"] is None and not cell["path"]):
        raise UserError(f"The image {name} is missing: its cell is empty.")
    if cell["bytes"] is not None:
        return cell["bytes"]
    import fsspec

    try:
        with fsspec.open(cell["path"], "rb") as file:
            return file.read()
    except Exception as error:  # httpx, aiohttp and others have no common base class
        raise UserError(f"The image {cell['path']} ({name}) cannot be read ({one_line(error)}).") from error


def split_name(name: str) -> tuple[str, str | None, str | None]:
    """Split NAME[@CONFIG][:SPLIT] into its parts. A directory's own name may contain "@" and ":"."""
    found = None if Path(name).is_dir() else SPLIT.search(name)
    path, split = (name[: found.start()], found[1]) if found else (name, None)
    if Path(path).is_dir():
        return path, None, split
    path, _, config = path.rpartition("@") if "@" in path else (path, "", None)
    return path, config, split


def _undecoded_image() -> Any:
    import datasets

    return datasets.Image(decode=False)


def _is_list(feature: Any) -> bool:
    import datasets

    return isinstance(feature, datasets.List | datasets.LargeList)


def _open(name: str, *, streaming: bool) -> tuple[Any, int | None]:
    """Return the rows and, where it is known, their number."""
    with optional_import("Reading a Hugging Face data set", "bootstrap"):
        import datasets
    path, config, split = split_name(name)
    if Path(path).is_absolute() and not Path(path).is_dir():
        raise UserError(f"There is no data set directory {path}.")
    try:
        if any((Path(path) / file).is_file() for file in SAVED):
            saved = _open_saved(path, config, split)
            files = max(1, len(saved.cache_files))
            return saved.to_iterable_dataset(num_shards=files) if streaming else saved, len(saved)
        rows = datasets.load_dataset(path, config, split=split or DEFAULT_SPLIT, streaming=streaming)
    except UserError:
        raise
    except Exception as error:  # no connection, an unknown name, damaged files of a dozen formats
        hint = " Write NAME@CONFIG." if "Config name is missing" in str(error) else ""
        raise UserError(f"The data set {name} cannot be opened: {one_line(error)}{hint}") from error
    known = (rows.info.splits or {}).get(split or DEFAULT_SPLIT)
    return rows, known.num_examples or None if known else None


def _open_saved(path: str, config: str | None, split: str | None) -> datasets.Dataset:
    import datasets

    if config is not None:
        raise UserError(f"{path} was saved without configurations. Leave out {config!r}.")
    saved = datasets.load_from_disk(path)
    if isinstance(saved, datasets.Dataset):
        if split is not None:
            raise UserError(f"{path} holds one data set without splits. Leave out {split!r}.")
        return saved
    check_choice(f"split of {path}", split or DEFAULT_SPLIT, map(str, saved))
    return saved[split or DEFAULT_SPLIT]


def _image_column(name: str, features: datasets.Features | None, asked: str | None) -> str:
    import datasets

    columns = dict(features or {})
    if asked is not None:
        if features is not None:
            check_choice(f"column of {name}", asked, columns)
        return asked
    images = [column for column, feature in columns.items() if isinstance(feature, datasets.Image)]
    if len(images) != 1:
        raise UserError(
            f"The data set {name} has {len(images)} image columns among {', '.join(columns) or 'unnamed ones'}. "
            "Choose one by --image_column."
        )
    return images[0]
