"""What streams read: webdataset's tar files, local or behind URLs; the files of a streamed Hugging Face data set."""

import contextlib
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import webdataset
from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_expander

from sparse_vlm.data.images.seeded import BadImages
from sparse_vlm.data.images.sets import cell_bytes
from sparse_vlm.data.images.streams import Encoded
from sparse_vlm.errors import UserError, one_line
from sparse_vlm.image_files import readable_endings


class WebShards:
    """Tar files in webdataset's layout: the files of a sample follow each other and differ in their ending only.

    Args:
        spec: webdataset's own notation: paths or URLs with {000..127}, several joined by "::".
        image_key: ending of a sample's image, e.g. "jpg"; None: the one ending that PIL reads.

    Raises:
        UserError: a local file is missing, or the notation is wrong.
    """

    def __init__(self, spec: str, image_key: str | None = None) -> None:
        try:
            self.names: list[str] = webdataset.shardlists.expand_urls(spec)
        except (AssertionError, ValueError) as error:  # unset ${VARIABLE}, unbalanced braces
            raise UserError(f"The shards {spec!r} are not webdataset's notation ({error}).") from error
        self.image_key = None if image_key is None else image_key.lower().removeprefix(".")  # as webdataset has them
        missing = [name for name in self.names if (path := _local(name)) is not None and not path.is_file()]
        if missing:
            raise UserError(
                f"There is no shard {missing[0]} ({len(missing)} of {len(self.names)} in {spec!r} are missing)."
            )

    def count(self, on_bad_image: str = "error") -> int | None:
        """Images in all shards, from the tar headers; None if a shard is not a local file.

        Args:
            on_bad_image: with "skip", what lies before the place where a shard breaks off counts.

        Raises:
            UserError: a shard is no tar file, or has no image, and the policy is "error"; there is no image at all.
        """
        paths, bad = [_local(name) for name in self.names], BadImages(on_bad_image)
        if None in paths:
            return None
        images = sum(self._count(path, bad) for path in paths if path is not None)
        if not images:
            raise UserError(f"None of the {len(paths)} shards holds an image that can be read, e.g. {paths[0]}.")
        return images

    def read(self, index: int) -> Iterator[Encoded | UserError]:
        url = self.names[index]
        try:
            stream = webdataset.gopen(url)
            try:
                yield from self._images({"url": url, "stream": stream})
            except BaseException:  # also GeneratorExit: that a download ended early is no error of its own
                with contextlib.suppress(OSError):
                    stream.close()
                raise
            stream.close()  # raises when the program behind it failed
        except Exception as error:  # tarfile, zlib, gopen's subprocess … each has its own
            raise UserError(f"The shard {url} cannot be read to its end ({one_line(error)}).") from error

    def _images(self, shard: dict[str, Any]) -> Iterator[Encoded | UserError]:
        repeated: list[UserError] = []

        def name_repeated(error: Exception) -> bool:
            repeated.append(UserError(f"The shard {shard['url']} has {str(error.args[0]).partition(':')[0]} twice."))
            return True

        for sample in group_by_keys(tar_file_expander([shard]), handler=name_repeated):
            yield self._image(sample)
            yield from repeated
            repeated.clear()
        yield from repeated

    def _image(self, sample: dict[str, Any]) -> Encoded | UserError:
        name = f"{sample['__key__']} of {sample['__url__']}"
        keys = [key for key in sample if self._is_image(key)]
        if len(keys) != 1:
            found = ", ".join(key for key in sample if not key.startswith("__"))
            return UserError(
                f"The sample {name} has {len(keys)} images among its endings ({found}); --image_column says which one."
            )
        return Encoded(name, sample[keys[0]])

    def _is_image(self, key: str) -> bool:
        if self.image_key is not None:
            return key == self.image_key
        return f".{key}" in readable_endings()

    def _count(self, path: Path, bad: BadImages) -> int:
        names: list[tuple[str | None, str]] = []
        try:
            with tarfile.open(path) as tar:
                names.extend(base_plus_ext(member.name) for member in tar if member.isreg())
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            bad.handle(UserError(f"The shard {path} cannot be read to its end ({one_line(error)})."))
        images = {key for key, ending in names if key is not None and self._is_image(ending.lower())}
        if names and not images:
            endings = sorted({ending for key, ending in names if key is not None})
            known = ", ".join(endings[:5]) or "none"
            says = f"its endings are {known}, --image_column says which one (they begin at the first dot of a name)"
            bad.handle(UserError(f"The shard {path} holds no images: {says}."))
        return len(images)


class TableShards:
    """The files of a streamed Hugging Face data set.

    Args:
        rows: a `datasets.IterableDataset`.
        column: its images, not decoded.
    """

    def __init__(self, rows: Any, column: str) -> None:
        self.rows, self.column = rows, column
        self.names = [f"part {index} of {column!r}" for index in range(rows.num_shards)]

    def read(self, index: int) -> Iterator[Encoded | UserError]:
        part = self.rows.shard(num_shards=len(self.names), index=index)
        position = 0
        try:
            # `iter`, because plain iteration would leave all parts to the first data worker
            for batch in part.iter(batch_size=16):
                for cell in batch[self.column]:
                    yield _encoded(cell, f"row {position} of {self.names[index]}")
                    position += 1
        except Exception as error:  # httpx, aiohttp, pyarrow … each has its own
            raise UserError(f"{self.names[index]} cannot be read to its end ({one_line(error)}).") from error


def _encoded(cell: dict[str, Any] | None, name: str) -> Encoded | UserError:
    try:
        return Encoded(name, cell_bytes(cell, name))
    except UserError as error:
        return error


def _local(url: str) -> Path | None:
    """The path that webdataset's gopen opens itself; None for what it leaves to a program (curl, gsutil, a pipe)."""
    parts = urlparse(url)
    if parts.scheme == "":
        return Path(url)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else None
