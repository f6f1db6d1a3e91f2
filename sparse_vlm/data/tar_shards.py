"""webdataset's tar files: the shards that a spec names, and the members of a local one."""

import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import urlparse
from urllib.request import url2pathname

from sparse_vlm.errors import UserError, one_line, optional_import


def expand_shards(spec: str) -> list[str]:
    """Return the paths and URLs of a spec in webdataset's notation: {000..127} expands, "::" joins."""
    with optional_import("Reading webdataset shards", "bootstrap"):
        from webdataset.shardlists import expand_urls
    try:
        return expand_urls(spec)
    except (AssertionError, ValueError) as error:  # an unset ${VARIABLE}, unbalanced braces
        raise UserError(f"The shards {spec!r} are not in webdataset's notation ({error}).") from error


def local_path(url: str) -> Path | None:
    """Return the path of a shard that is a local file; None for one that webdataset reads with curl, a pipe, …"""
    parts = urlparse(url)
    if parts.scheme == "":
        return Path(url)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else None


def shard_members(shard: Path, mode: Literal["r", "r:"] = "r") -> Iterator[tarfile.TarInfo]:
    """Iterate over the regular files of a tar file.

    Args:
        shard: a local file.
        mode: "r": of any compression; "r:": uncompressed, so that members can be read by their offsets.

    Raises:
        UserError: the file ends early, after its last whole member, or is not a tar file.
    """
    try:
        with tarfile.open(shard, mode) as tar:
            yield from filter(tarfile.TarInfo.isreg, tar)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"The shard {shard} cannot be read to its end ({one_line(error)}).") from error
