"""Streams: order, split over readers, repeated visits, and bad shards and images."""

import itertools
import logging
from collections import Counter
from collections.abc import Iterator

import pytest
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from sparse_vlm.data.images.streams import Encoded, ImageStream
from sparse_vlm.errors import UserError
from tests.data.images.streams import NamedShards, first_pixels, seen

crop = v2.Compose([v2.RandomResizedCrop(8), v2.PILToTensor()])


@pytest.fixture
def three(image_files: list[bytes]) -> NamedShards:
    return NamedShards([image_files[:4], image_files[4:7], image_files[7:]])


def test_an_epoch_is_a_permutation_by_seed_and_epoch(three: NamedShards) -> None:
    epochs = [seen(ImageStream(three, first_pixels, 10, seed=seed), epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert all(len(set(epoch)) == 10 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert seen(ImageStream(three, first_pixels, 10, seed=0), 1) == epochs[1]


def test_without_a_buffer_the_order_is_that_of_the_shards(three: NamedShards, image_files: list[bytes]) -> None:
    stream = ImageStream(three, first_pixels, 10, shuffle_buffer=0)
    ordered = seen(ImageStream(NamedShards([image_files]), first_pixels, 10, shuffle_buffer=0))
    assert seen(stream, 0) == seen(stream, 3) == ordered


@pytest.mark.parametrize(("world_size", "workers"), [(1, 2), (2, 0), (3, 0), (5, 0)])
def test_every_reader_has_the_same_number_of_its_own_images(three: NamedShards, world_size: int, workers: int) -> None:
    stream = ImageStream(three, first_pixels, 10)
    parts = [seen(stream.share(1, rank, world_size), 2, workers) for rank in range(world_size)]
    assert [len(part) for part in parts] == [10 // world_size] * world_size
    assert len(parts[0]) == len(stream.share(1, 0, world_size))
    counts = Counter(itertools.chain(*parts))
    if world_size * workers != 2:  # of two readers, one has 4 + 3 images of its own, the other 3
        assert max(counts.values()) <= 2
    if world_size == 5:  # more readers than shards: each takes every n-th image of all
        assert len(counts) == 10


def test_batches_are_complete_and_counted(three: NamedShards) -> None:
    share = ImageStream(three, first_pixels, 23).share(4, 0, 2)
    loader = DataLoader(share, batch_size=4, num_workers=2)
    assert [len(batch["pixel_values"]) for batch in loader] == [4, 4]
    assert len(loader) == 2
    with pytest.raises(UserError, match="An epoch of 23 images is less than one batch \\(12\\) of each of 2 processes"):
        ImageStream(three, first_pixels, 23).share(12, 0, 2)


def test_the_same_image_has_the_same_crop_for_any_number_of_workers(three: NamedShards) -> None:
    stream = ImageStream(three, crop, 10, shuffle_buffer=0)
    alone = seen(stream)
    assert set(seen(stream.share(1, 0, 5)) + seen(stream.share(1, 3, 5))) <= set(alone)
    assert set(seen(stream, workers=2)) & set(alone)
    assert not set(seen(stream, epoch=1)) & set(alone)


def test_a_second_visit_has_another_order_and_other_crops(three: NamedShards) -> None:
    views = seen(ImageStream(three, crop, 20))
    assert len(set(views)) == 20
    pixels = seen(ImageStream(three, first_pixels, 20, shuffle_buffer=1))
    assert set(pixels[:10]) == set(pixels[10:])
    assert pixels[:10] != pixels[10:]


def test_resampled_draws_shards_with_replacement(three: NamedShards) -> None:
    epochs = [seen(ImageStream(three, first_pixels, 40, resampled=True), epoch) for epoch in (0, 0, 1)]
    assert epochs[0] == epochs[1] != epochs[2]
    assert len(set(Counter(epochs[0]).values())) > 1
    readers = [seen(ImageStream(three, first_pixels, 40, resampled=True).share(1, rank, 2)) for rank in (0, 1)]
    assert readers[0] != readers[1]


def test_bad_images_stop_or_are_counted_and_named(image_files: list[bytes], caplog: pytest.LogCaptureFixture) -> None:
    shards = NamedShards([[*image_files[:4], b"not an image"], image_files[4:]])
    with pytest.raises(UserError, match=r"The image 0/4 cannot be read .*--on_bad_image skip"):
        seen(ImageStream(shards, first_pixels, 11))
    stream = ImageStream(shards, first_pixels, 10, on_bad_image="skip", shuffle_buffer=0)
    with caplog.at_level(logging.WARNING):
        assert len(set(seen(stream))) == 10
    assert "Skipped: The image 0/4 cannot be read" in caplog.text
    assert stream.unreadable == 1
    seen(stream, workers=2)
    assert stream.unreadable > 1  # counted over all data workers


def test_a_stream_of_bad_images_ends(caplog: pytest.LogCaptureFixture) -> None:
    stream = ImageStream(NamedShards([[b"not an image"] * 6] * 2), first_pixels, 10**6, on_bad_image="skip")
    with pytest.raises(
        UserError, match=r"Reader 0 of 1 finds no readable image in 2 shards; the last: The image [01]/"
    ):
        seen(stream)
    assert stream.unreadable == 12
    assert "Data worker 0 has skipped 10 unreadable images" in caplog.text


class UnreachableShards(NamedShards):
    """Shards some of which cannot be reached."""

    def __init__(self, shards: list[list[bytes]], unreachable: set[int]) -> None:
        super().__init__(shards)
        self.unreachable = unreachable

    def read(self, index: int) -> Iterator[Encoded | UserError]:
        if index in self.unreachable:
            raise UserError(f"Shard {index} cannot be reached.")
        yield from super().read(index)


@pytest.mark.parametrize(
    ("world_size", "resampled", "attempts"),
    [
        (1, False, 4),
        (1, True, 4),
        (2, False, 4),
        (4, False, 4),
        (8, False, 1),
    ],  # each of 8 readers takes every 8th image
)
def test_a_reader_gives_up_after_as_many_unreachable_shards_as_there_are(
    world_size: int, resampled: bool, attempts: int
) -> None:
    shards = UnreachableShards([[]] * 4, {0, 1, 2, 3})
    stream = ImageStream(shards, first_pixels, 10**6, on_bad_image="skip", resampled=resampled)
    with pytest.raises(
        UserError, match=rf"Reader 0 of {world_size} finds no readable image in 4 shards; .* cannot be reached"
    ):
        seen(stream.share(1, 0, world_size))
    assert stream.unreadable == attempts


@pytest.mark.parametrize("world_size", [1, 4])
def test_an_unreachable_shard_does_not_stop_a_reader(world_size: int, image_files: list[bytes]) -> None:
    """Not even a reader with no other shard, because the next visit deals the shards again."""
    shards = UnreachableShards([[data] for data in image_files[:4]], {2})
    stream = ImageStream(shards, first_pixels, 12 * world_size, on_bad_image="skip")
    for rank in range(world_size):
        assert len(seen(stream.share(1, rank, world_size))) == 12
    assert stream.unreadable > 0


def test_fewer_images_than_readers_are_an_error(image_files: list[bytes]) -> None:
    stream = ImageStream(NamedShards([image_files[:2]]), first_pixels, 100).share(1, 2, 3)
    with pytest.raises(UserError, match=r"Reader 2 of 3 .* finds no image in shard 0"):
        seen(stream)
