"""Results of frozen encoders on disk, so that an image is encoded once for many comparisons."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparse_vlm.data.tar_shards import Member
from sparse_vlm.errors import UserError, one_line
from sparse_vlm.files import new_file

logger = logging.getLogger(__name__)
Compute = Callable[[], dict[str, Tensor]]


def cached(
    folder: Path | None, about: Mapping[str, Any], names: Sequence[str], count: int, compute: Compute
) -> dict[str, Tensor]:
    """Return the results of `compute`, from a file if it was run before with the same `about`.

    Files are named by the hash of `about`, which they also contain, and are written atomically. Results that do not fit
    are computed again. Files are never removed.

    Args:
        folder: the cache; None to compute without one.
        about: everything that determines the results, as JSON values.
        names: names of the results.
        count: number of rows of each result.
        compute: computes the results, float32[count, …] by name.

    Raises:
        UserError: a file of the cache is damaged, or cannot be written.
    """
    if folder is None:
        return compute()
    text = json.dumps(about, sort_keys=True)
    file = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"
    if (found := _read(file, text, names, count)) is not None:
        return found
    results = compute()
    with new_file(file) as temporary:
        save_file({name: each.contiguous() for name, each in results.items()}, temporary, metadata={"about": text})
    return results


def _read(file: Path, about: str, names: Sequence[str], count: int) -> dict[str, Tensor] | None:
    """Read a file of the cache; None if there is none, or if it does not fit."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as reader:
            fits = (reader.metadata() or {}).get("about") == about
            found = {name: reader.get_tensor(name) for name in reader.keys()} if fits else {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"The cached results in {file} cannot be read ({one_line(error)}). Remove the file.") from error
    if found.keys() != set(names) or any((len(each), each.dtype) != (count, torch.float32) for each in found.values()):
        logger.warning("The cached results in %s do not fit: they are computed again.", file)
        return None
    return found


def files_digest(files: Iterable[Path | Member]) -> str:
    """Hash which images a list names, in its order: path, size and time of change of their files, and places in shards.

    Raises:
        UserError: a file does not exist.
    """

    @cache
    def state(path: Path) -> tuple[str, int, int]:
        try:
            stat = path.stat()
        except OSError as error:
            raise UserError(f"The image file {path} cannot be read: {error.strerror}.") from error
        return str(path.resolve()), stat.st_size, stat.st_mtime_ns

    digest = hashlib.sha256()
    for each in files:
        place = (*state(each.shard), each.name, each.offset) if isinstance(each, Member) else state(each)
        digest.update(repr(place).encode())
    return digest.hexdigest()[:16]
