"""Hugging Face data sets with images: from the hub or a directory, whole or streamed."""

import re
from pathlib import Path
from typing import Any

import datasets

from sparse_vlm.errors import UserError, one_line, unknown_choice

DEFAULT_SPLIT = "train"
SPLIT = re.compile(r":([^:\[\]]*(?:\[[^\]]*\])?)$")  # at the end of a name; a slice, as in train[:50%], has a colon too
SAVED = ("state.json", "dataset_dict.json")  # what `save_to_disk` writes, of one split or of several


def open_table(name: str, image_column: str | None) -> tuple[datasets.Dataset, str]:
    """A data set by index, and its image column, not decoded.

    Args:
        name: NAME[@CONFIG][:SPLIT] of the hub or a directory.
        image_column: None: the only one of images.

    Raises:
        UserError: it cannot be opened, is empty, or the column is not clear.
    """
    rows, _ = _open(name, streaming=False)
    column = _image_column(name, rows.features, image_column)
    if not len(rows):
        raise UserError(f"The data set {name} is empty.")
    if _is_list(rows.features[column]):
        raise UserError(f"The column {column!r} of {name} holds no images but lists. Give one with an image a row.")
    return undecoded(rows, column, name), column


def open_rows(name: str) -> datasets.Dataset:
    """A whole data set by index.

    Args:
        name: NAME[@CONFIG][:SPLIT] of the hub or a directory.

    Raises:
        UserError: it cannot be opened.
    """
    return _open(name, streaming=False)[0]


def undecoded(rows: datasets.Dataset, column: str, name: str) -> datasets.Dataset:
    """A column of images, or of lists of them, alone and not decoded: {"bytes": …, "path": …}.

    Args:
        rows: a data set.
        column: declared as images, or encoded images, such {"bytes", "path"}, or paths.
        name: of the data set, for the error.

    Raises:
        UserError: it holds something else.
    """
    image: Any = datasets.Image(decode=False)
    feature = rows.features[column]
    try:
        return rows.select_columns([column]).cast_column(column, type(feature)(image) if _is_list(feature) else image)
    except (TypeError, ValueError, NotImplementedError) as error:  # pyarrow's are subclasses of these
        raise UserError(f"The column {column!r} of {name} holds no images ({one_line(error)}).") from error


def _is_list(feature: Any) -> bool:
    return isinstance(feature, datasets.List | datasets.LargeList)


def open_stream(name: str, image_column: str | None) -> tuple[datasets.IterableDataset, str, int | None]:
    """The same in sequence, and the number of rows where it is known.

    Raises:
        UserError: as `open_table`.
    """
    rows, images = _open(name, streaming=True)
    column = _image_column(name, rows.features, image_column)
    return rows.select_columns([column]).cast_column(column, datasets.Image(decode=False)), column, images


def _open(name: str, *, streaming: bool) -> tuple[Any, int | None]:
    """The rows and, where it is known, their number."""
    path, config, split = _parts(name)
    if Path(path).is_absolute() and not Path(path).is_dir():
        raise UserError(f"There is no data set directory {path}.")
    try:
        if any((Path(path) / file).is_file() for file in SAVED):
            saved = _saved(path, config, split)
            files = max(1, len(saved.cache_files))
            return saved.to_iterable_dataset(num_shards=files) if streaming else saved, len(saved)
        rows = datasets.load_dataset(path, config, split=split or DEFAULT_SPLIT, streaming=streaming)
    except UserError:
        raise
    except Exception as error:  # no connection, unknown name, damaged files of a dozen formats
        hint = " Write NAME@CONFIG." if "Config name is missing" in str(error) else ""
        raise UserError(f"The data set {name} cannot be opened: {one_line(error)}{hint}") from error
    known = (rows.info.splits or {}).get(split or DEFAULT_SPLIT)
    return rows, known.num_examples or None if known else None


def _parts(name: str) -> tuple[str, str | None, str | None]:
    """Path or name, configuration, split. A directory's own name may have both marks in it."""
    found = None if Path(name).is_dir() else SPLIT.search(name)
    path, split = (name[: found.start()], found[1]) if found else (name, None)
    if Path(path).is_dir():
        return path, None, split
    path, _, config = path.rpartition("@") if "@" in path else (path, "", None)
    return path, config, split


def _saved(path: str, config: str | None, split: str | None) -> datasets.Dataset:
    if config is not None:
        raise UserError(f"{path} was saved without configurations. Leave out {config!r}.")
    saved = datasets.load_from_disk(path)
    if isinstance(saved, datasets.Dataset):
        if split is not None:
            raise UserError(f"{path} holds one data set without splits. Leave out {split!r}.")
        return saved
    if (split or DEFAULT_SPLIT) not in saved:
        raise unknown_choice(f"split of {path}", split or DEFAULT_SPLIT, [str(known) for known in saved])
    return saved[split or DEFAULT_SPLIT]


def _image_column(name: str, features: datasets.Features | None, asked: str | None) -> str:
    columns = dict(features or {})
    if asked is not None:
        if features is not None and asked not in columns:
            raise unknown_choice(f"column of {name}", asked, columns)
        return asked
    images = [column for column, feature in columns.items() if isinstance(feature, datasets.Image)]
    if len(images) != 1:
        raise UserError(
            f"The data set {name} has {len(images)} columns of images among {', '.join(columns) or 'unnamed ones'}; "
            "--image_column says which one."
        )
    return images[0]
