"""Streams of images, read in sequence from shards: webdataset tar files, streamed Hugging Face data sets."""

import copy
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from typing import NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from sparse_vlm.data.images.seeded import SeededImages, seed_of
from sparse_vlm.errors import UserError, optional_import
from sparse_vlm.image_files import decode_image


class Encoded(NamedTuple):
    """The bytes of an image file, and its name for messages."""

    name: str
    data: bytes


Item = tuple[Encoded | UserError, int]  # and a number that distinguishes visits to the same shard


class Shards(Protocol):
    """Named groups of images."""

    names: Sequence[str]

    def read(self, index: int) -> Iterator[Encoded | UserError]:
        """Iterate over the images of a shard, always in the same order. An entry without an image yields an error.

        Raises:
            UserError: the shard cannot be read, or not to its end.
        """


class ImageStream(SeededImages, IterableDataset):
    """A stream over shards. Items: {"pixel_values": float32[3, H, W]}.

    An epoch has `images` images, however many the shards hold. Its order depends only on the seed and the epoch: the
    shards are shuffled and dealt to the readers (each data worker of each process is a reader). A reader shuffles
    within a buffer, and starts over in another order when it has read all its shards. With n readers and fewer shards
    than that, each reader takes every n-th image of all shards. A resumed run therefore reads at most the interrupted
    epoch again.

    Args:
        shards: the source.
        transform, seed, on_bad_image: see `SeededImages`. A shard that ends early counts as one bad image.
        images: images per epoch, over all processes.
        resampled: each reader draws from all shards with replacement; a visit is as many draws as there are shards.
        shuffle_buffer: encoded images among which a reader shuffles; 0: keep the order of the shards.
    """

    def __init__(
        self,
        shards: Shards,
        transform: Callable[[Image.Image], Tensor],
        images: int,
        *,
        seed: int = 0,
        on_bad_image: str = "error",
        resampled: bool = False,
        shuffle_buffer: int = 1000,
    ) -> None:
        super().__init__(transform, seed, on_bad_image)
        if images < 1:
            raise UserError(f"An epoch must have at least one image, got --samples_per_epoch {images}.")
        self.shards, self.images, self.resampled, self.shuffle_buffer = shards, images, resampled, shuffle_buffer
        self.batch_size, self.rank, self.world_size = 1, 0, 1

    def share(self, batch_size: int, rank: int, world_size: int) -> "ImageStream":
        """Return the share of one process. All processes read the same number of whole batches.

        Args:
            batch_size: of the data loader. The exact length depends on it, because each data worker batches for itself.
            rank, world_size: index of the process, and the number of processes.
        """
        if self.images < batch_size * world_size:
            raise UserError(
                f"An epoch of {self.images} images is less than one batch ({batch_size}) of each of {world_size} "
                "processes. Raise --samples_per_epoch or lower the batch size."
            )
        share = copy.copy(self)  # the epoch and the counts stay shared
        share.batch_size, share.rank, share.world_size = batch_size, rank, world_size
        return share

    def __len__(self) -> int:
        return self.images // (self.batch_size * self.world_size) * self.batch_size

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = get_worker_info()
        position, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        batches = len(range(position, len(self) // self.batch_size, workers))
        attempts = self.attempts(self.rank * workers + position, self.world_size * workers)
        readable = ({"pixel_values": pixels} for pixels in attempts if pixels is not None)
        return islice(readable, batches * self.batch_size)

    def attempts(self, reader: int, readers: int) -> Iterator[Tensor | None]:
        """Iterate without end over the images of one reader; None for an unreadable image.

        Each visit to the shards has another order and other crops.

        Raises:
            UserError: the reader has tried as many shards as there are without reading a single image.
        """
        shards = len(self.shards.names)
        # a visit covers all shards, or the share that this reader is dealt
        allowed_visits = readers if shards >= readers and not self.resampled else 1
        visits_without_image = 0
        for visit in count():
            visits_without_image += 1
            for encoded, number in self._visit(visit, reader, readers):
                try:
                    if isinstance(encoded, UserError):
                        raise encoded
                    image = decode_image(encoded.data, encoded.name)
                except UserError as error:
                    self.bad.handle(error)
                    last = error
                    yield None
                    continue
                visits_without_image = 0
                yield self.augmented(image, number, len(encoded.data), zlib.crc32(encoded.data))
            if visits_without_image == allowed_visits:
                raise UserError(
                    f"Reader {reader} of {readers} finds no readable image in {shards} shards; the last: {last}"
                )

    def _visit(self, visit: int, reader: int, readers: int) -> Iterator[Item]:
        found = 0
        for item in self._shuffled(self._unshuffled(visit, reader, readers), reader, visit):
            found += 1
            yield item
        if not found:
            raise UserError(
                f"Reader {reader} of {readers} (processes × data workers) finds no image in {self.shards.names[0]} "
                "and the other shards, which hold fewer images than there are readers."
            )

    def _unshuffled(self, visit: int, reader: int, readers: int) -> Iterator[Item]:
        if not self.resampled:
            return ((encoded, visit) for encoded in self._dealt(visit, reader, readers))
        shards = len(self.shards.names)
        draws = range(visit * shards, (visit + 1) * shards)  # a shard that is drawn again gets other crops
        return ((encoded, draw) for draw in draws for encoded in self._read(self._drawn_shard(draw, reader)))

    def _drawn_shard(self, draw: int, reader: int) -> int:
        rng = random.Random(seed_of(self.seed, self.epoch, "draw", reader, draw))
        return rng.randrange(len(self.shards.names))

    def _dealt(self, visit: int, reader: int, readers: int) -> Iterator[Encoded | UserError]:
        order = list(range(len(self.shards.names)))
        if self.shuffle_buffer:
            random.Random(seed_of(self.seed, self.epoch, "shards", visit)).shuffle(order)
        if len(order) >= readers:
            return (encoded for index in order[reader::readers] for encoded in self._read(index))
        return islice((encoded for index in order for encoded in self._read(index)), reader, None, readers)

    def _shuffled(self, stream: Iterator[Item], reader: int, visit: int) -> Iterator[Item]:
        if self.shuffle_buffer < 2:
            return stream
        with optional_import("Shuffling a stream", "bootstrap"):
            import webdataset

        rng = random.Random(seed_of(self.seed, self.epoch, "buffer", reader, visit))
        return webdataset.filters.shuffle(self.shuffle_buffer, rng=rng)(stream)

    def _read(self, index: int) -> Iterator[Encoded | UserError]:
        """Iterate over a shard's images. A shard that ends early, or holds no image, yields an error at its end."""
        found = False
        try:
            for encoded in self.shards.read(index):
                found = True
                yield encoded
        except UserError as error:
            yield error
        else:
            if not found:
                yield UserError(f"The shard {self.shards.names[index]} holds no images.")


class HeldOutStream(IterableDataset):
    """The first images of a stream, to evaluate on with a single reader. Items are those of `HeldOutImages`.

    Args:
        stream: in the order of its shards (shuffle_buffer 0).
    """

    def __init__(self, stream: ImageStream) -> None:
        self.stream = stream

    def __len__(self) -> int:
        return self.stream.images

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for pixels in islice(self.stream.attempts(0, 1), len(self)):
            item = self.stream.blank() if pixels is None else pixels
            yield {"pixel_values": item, "readable": torch.tensor(pixels is not None)}
