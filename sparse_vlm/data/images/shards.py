"""Shards to stream from: webdataset's tar files, local or remote, and the files of a streamed Hugging Face data set."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparse_vlm.data.images.hf_tables import cell_bytes
from sparse_vlm.data.images.seeded import BadImages
from sparse_vlm.data.images.streams import Encoded
from sparse_vlm.data.tar_shards import expand_shards, local_path, require_shards, shard_members
from sparse_vlm.errors import UserError, one_line
from sparse_vlm.image_files import readable_suffixes


class WebShards:
    """Tar files in webdataset's layout: the files of a sample are consecutive and differ only in their suffix.

    Args:
        spec: webdataset's notation: paths or URLs with {000..127}, joined by "::".
        image_key: suffix of a sample's image, e.g. "jpg"; None: the only one that PIL reads.
    """

    def __init__(self, spec: str, image_key: str | None = None) -> None:
        self.names = expand_shards(spec)
        self.image_key = None if image_key is None else image_key.lower().removeprefix(".")  # webdataset's spelling
        require_shards([path for name in self.names if (path := local_path(name)) is not None], spec)

    def count(self, on_bad_image: str = "error") -> int | None:
        """Count the images of all shards from the tar headers. None if a shard is not a local file.

        Args:
            on_bad_image: "error" stops at a shard that is damaged or holds no image; "skip" reports it and counts the
                images before the damage.
        """
        paths, bad = [local_path(name) for name in self.names], BadImages(on_bad_image)
        if None in paths:
            return None
        images = sum(self._count(path, bad) for path in paths if path is not None)
        if not images:
            raise UserError(f"None of the {len(paths)} shards holds an image that can be read, e.g. {paths[0]}.")
        return images

    def read(self, index: int) -> Iterator[Encoded | UserError]:
        """Iterate over the images of a shard; see `Shards`."""
        import webdataset

        url = self.names[index]
        try:
            stream = webdataset.gopen(url)
            try:
                yield from self._images({"url": url, "stream": stream})
            except BaseException:  # GeneratorExit too: closing a download early is not an error
                with contextlib.suppress(OSError):
                    stream.close()
                raise
            stream.close()  # raises if the program behind it failed
        except Exception as error:  # tarfile, zlib and gopen's subprocess have no common base class
            raise UserError(f"The shard {url} cannot be read to its end ({one_line(error)}).") from error

    def _images(self, shard: dict[str, Any]) -> Iterator[Encoded | UserError]:
        from webdataset.tariterators import group_by_keys, tar_file_expander

        repeated: list[UserError] = []

        def note_repeated(error: Exception) -> bool:
            repeated.append(UserError(f"The shard {shard['url']} has {str(error.args[0]).partition(':')[0]} twice."))
            return True

        for sample in group_by_keys(tar_file_expander([shard]), handler=note_repeated):
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
                f"The sample {name} has {len(keys)} images among its suffixes ({found}). Choose one by --image_column."
            )
        return Encoded(name, sample[keys[0]])

    def _is_image(self, key: str) -> bool:
        if self.image_key is not None:
            return key == self.image_key
        return f".{key}" in readable_suffixes()

    def _count(self, path: Path, bad: BadImages) -> int:
        from webdataset.tariterators import base_plus_ext

        names: list[tuple[str | None, str]] = []
        try:
            names.extend(base_plus_ext(member.name) for member in shard_members(path))
        except UserError as error:
            bad.handle(error)
        images = {key for key, suffix in names if key is not None and self._is_image(suffix.lower())}
        if names and not images:
            suffixes = sorted({suffix for key, suffix in names if key is not None})
            bad.handle(
                UserError(
                    f"The shard {path} holds no images: its suffixes, which begin at the first dot of a name, are "
                    f"{', '.join(suffixes[:5]) or 'none'}. Choose one by --image_column."
                )
            )
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
        """Iterate over the images of a file; see `Shards`."""
        part = self.rows.shard(num_shards=len(self.names), index=index)
        position = 0
        try:
            # plain iteration would leave all parts to the first data worker; `iter` does not
            for batch in part.iter(batch_size=16):
                for cell in batch[self.column]:
                    yield _encoded(cell, f"row {position} of {self.names[index]}")
                    position += 1
        except Exception as error:  # httpx, aiohttp and pyarrow have no common base class
            raise UserError(f"{self.names[index]} cannot be read to its end ({one_line(error)}).") from error


def _encoded(cell: dict[str, Any] | None, name: str) -> Encoded | UserError:
    try:
        return Encoded(name, cell_bytes(cell, name))
    except UserError as error:
        return error
