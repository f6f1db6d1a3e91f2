"""Errors of remote files and broken connections."""

from collections.abc import Iterator
from typing import Any

import datasets
import fsspec
import pytest

from sparse_vlm.data.images.hf_tables import cell_bytes
from sparse_vlm.data.images.shards import TableShards
from sparse_vlm.errors import UserError


class BrokenConnectionError(Exception):
    """An error like those of httpx, neither OSError nor ValueError, and without a message."""


def test_a_broken_connection_is_one_sentence(image_files: list[bytes]) -> None:
    def rows(fails: bool) -> Iterator[dict[str, Any]]:
        for data in image_files[:2]:
            yield {"image": {"bytes": data, "path": None}}
        if fails:
            raise BrokenConnectionError

    table = datasets.IterableDataset.from_generator(rows, gen_kwargs={"fails": True})
    shards = TableShards(table, "image")
    with pytest.raises(UserError, match=r"part 0 of 'image' cannot be read to its end \(BrokenConnectionError\)"):
        list(shards.read(0))


class BrokenFile(fsspec.AbstractFileSystem):
    """A host that closes the connection."""

    protocol = "brokenhost"

    def _open(self, path: str, *args: object, **options: object) -> None:
        raise BrokenConnectionError


def test_a_broken_remote_file_is_one_sentence() -> None:
    fsspec.register_implementation("brokenhost", BrokenFile, clobber=True)
    with pytest.raises(
        UserError, match=r"The image brokenhost://a.png \(row 3\) cannot be read \(BrokenConnectionError\)"
    ):
        cell_bytes({"bytes": None, "path": "brokenhost://a.png"}, "row 3")
