"""webdataset's tar files: the shards that a spec names, and the members of a local one, also read in place."""

import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlparse
from urllib.request import url2pathname

from sparse_vlm.data.images.files import is_hidden
from sparse_vlm.errors import UserError, one_line, optional_import


class Member(NamedTuple):
    """A file inside an uncompressed tar file.

    Attributes:
        shard: the tar file.
        name: as the tar file has it.
        offset, size: where the content begins, and its length, in bytes.
    """

    shard: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.name} of {self.shard}"

    def read(self) -> bytes:
        """Return the content of the file."""
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


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


def local_shards(spec: str, reason: str, base: Path = Path()) -> list[Path]:
    """Return the shards of a spec, all of which must be local files.

    Args:
        spec: paths in webdataset's notation.
        reason: why they must be local, for the error.
        base: the folder that paths are relative to.
    """
    shards = []
    for url in expand_shards(spec):
        path = local_path(url)
        if path is None:
            raise UserError(f"The shard {url} is not a local file. Download it: {reason}.")
        shards.append(base / path)
    require_shards(shards, spec)
    return shards


def require_shards(shards: Sequence[Path], spec: str) -> None:
    """Check that the local shards of a spec exist."""
    missing = [shard for shard in shards if not shard.is_file()]
    if missing:
        raise UserError(f"There is no shard {missing[0]} ({len(missing)} of {len(shards)} in {spec!r} are missing).")


def members_in_place(shard: Path) -> Iterator[Member]:
    """Iterate over the files of an uncompressed tar file that are not hidden, to be read by their offsets."""
    try:
        for info in shard_members(shard, "r:"):
            if not any(map(is_hidden, info.name.removeprefix("./").split("/"))):
                yield Member(shard, info.name, info.offset_data, info.size)
    except UserError as error:
        raise UserError(f"{error} It must be a tar file without compression.") from error
