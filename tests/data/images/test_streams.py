"""Streams: order, split over readers, visits, and what becomes of bad shards and images."""

import functools
import io
import itertools
import logging
import shutil
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import webdataset
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from sparse_vlm.data.images.shards import WebShards
from sparse_vlm.data.images.streams import Encoded, ImageStream
from sparse_vlm.errors import UserError

crop = v2.Compose([v2.RandomResizedCrop(8), v2.PILToTensor()])


class NamedShards:
    """Shards in memory: a list of lists of encoded images."""

    def __init__(self, shards: list[list[bytes]]) -> None:
        self.shards = shards
        self.names = [f"shard {index}" for index in range(len(shards))]

    def read(self, index: int) -> Iterator[Encoded | UserError]:
        return (Encoded(f"{index}/{position}", data) for position, data in enumerate(self.shards[index]))


def first_pixels(image: Image.Image) -> Tensor:
    return v2.functional.pil_to_tensor(image)[:, 0, :2]


@pytest.fixture
def three(image_files: list[bytes]) -> NamedShards:
    return NamedShards([image_files[:4], image_files[4:7], image_files[7:]])


def seen(stream: ImageStream, epoch: int = 0, workers: int = 0) -> list[bytes]:
    stream.set_epoch(epoch)
    loader = DataLoader(stream, batch_size=stream.batch_size, num_workers=workers)
    return [item.numpy().tobytes() for batch in loader for item in batch["pixel_values"]]


def test_an_epoch_is_a_permutation_that_seed_and_epoch_decide(three: NamedShards) -> None:
    epochs = [seen(ImageStream(three, first_pixels, 10, seed=seed), epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert all(len(set(epoch)) == 10 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert seen(ImageStream(three, first_pixels, 10, seed=0), 1) == epochs[1]


def test_without_a_buffer_the_order_is_the_shards(three: NamedShards, image_files: list[bytes]) -> None:
    stream = ImageStream(three, first_pixels, 10, shuffle_buffer=0)
    ordered = seen(ImageStream(NamedShards([image_files]), first_pixels, 10, shuffle_buffer=0))
    assert seen(stream, 0) == seen(stream, 3) == ordered


@pytest.mark.parametrize(("world_size", "workers"), [(1, 2), (2, 0), (3, 0), (5, 0)])
def test_every_reader_has_its_own_images_and_all_the_same_number(
    three: NamedShards, world_size: int, workers: int
) -> None:
    stream = ImageStream(three, first_pixels, 10)
    parts = [seen(stream.share(1, rank, world_size), 2, workers) for rank in range(world_size)]
    assert [len(part) for part in parts] == [10 // world_size] * world_size
    assert len(parts[0]) == len(stream.share(1, 0, world_size))
    counts = Counter(itertools.chain(*parts))
    if world_size * workers != 2:  # with two readers one has 4 + 3 images, the other 3 of its own
        assert max(counts.values()) <= 2
    if world_size == 5:  # more readers than shards: every n-th image of all
        assert len(counts) == 10


def test_batches_are_whole_and_their_number_is_known(three: NamedShards) -> None:
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
    shards = NamedShards([[*image_files[:4], b"no image"], image_files[4:]])
    with pytest.raises(UserError, match=r"The image 0/4 cannot be read .*--on_bad_image skip"):
        seen(ImageStream(shards, first_pixels, 11))
    stream = ImageStream(shards, first_pixels, 10, on_bad_image="skip", shuffle_buffer=0)
    with caplog.at_level(logging.WARNING):
        assert len(set(seen(stream))) == 10
    assert "Skipped: The image 0/4 cannot be read" in caplog.text
    assert stream.unreadable == 1
    seen(stream, workers=2)
    assert stream.unreadable > 1  # counted in the workers' processes


def test_nothing_but_bad_images_ends(caplog: pytest.LogCaptureFixture) -> None:
    stream = ImageStream(NamedShards([[b"no image"] * 6] * 2), first_pixels, 10**6, on_bad_image="skip")
    with pytest.raises(
        UserError, match=r"Reader 0 of 1 finds no readable image in 2 shards; the last: The image [01]/"
    ):
        seen(stream)
    assert stream.unreadable == 12
    assert "Data worker 0 has skipped 10 unreadable images" in caplog.text


class UnreachableShards(NamedShards):
    """As if no host answered for those that are named."""

    def __init__(self, shards: list[list[bytes]], unreachable: set[int]) -> None:
        super().__init__(shards)
        self.unreachable = unreachable

    def read(self, index: int) -> Iterator[Encoded | UserError]:
        if index in self.unreachable:
            raise UserError(f"Shard {index} is out of reach.")
        yield from super().read(index)


@pytest.mark.parametrize(
    ("world_size", "resampled", "attempts"),
    [
        (1, False, 4),
        (1, True, 4),
        (2, False, 4),
        (4, False, 4),
        (8, False, 1),
    ],  # of 8 readers each takes every 8th entry
)
def test_a_reader_gives_up_after_as_many_unreachable_shards_as_there_are(
    world_size: int, resampled: bool, attempts: int
) -> None:
    shards = UnreachableShards([[]] * 4, {0, 1, 2, 3})
    stream = ImageStream(shards, first_pixels, 10**6, on_bad_image="skip", resampled=resampled)
    with pytest.raises(
        UserError, match=rf"Reader 0 of {world_size} finds no readable image in 4 shards; .* out of reach"
    ):
        seen(stream.share(1, 0, world_size))
    assert stream.unreadable == attempts


@pytest.mark.parametrize("world_size", [1, 4])
def test_one_unreachable_shard_stops_no_reader(world_size: int, image_files: list[bytes]) -> None:
    """Not even the reader that it is dealt to alone: the next visit deals anew."""
    shards = UnreachableShards([[data] for data in image_files[:4]], {2})
    stream = ImageStream(shards, first_pixels, 12 * world_size, on_bad_image="skip")
    for rank in range(world_size):
        assert len(seen(stream.share(1, rank, world_size))) == 12
    assert stream.unreadable > 0


def test_too_few_images_for_the_readers(image_files: list[bytes]) -> None:
    stream = ImageStream(NamedShards([image_files[:2]]), first_pixels, 100).share(1, 2, 3)
    with pytest.raises(UserError, match=r"Reader 2 of 3 .* finds no image in shard 0"):
        seen(stream)


def test_broken_shards(shards: str, tmp_path: Path, image_files: list[bytes]) -> None:
    whole = Path(shards.replace("{0..2}", "0"))
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[:1000])
    with webdataset.TarWriter(str(tmp_path / "text.tar")) as writer:
        writer.write({"__key__": "a", "txt": "no image"})
    with webdataset.TarWriter(str(tmp_path / "two.tar")) as writer:
        writer.write({"__key__": "a", "png": image_files[0], "seen.png": b"no", "jpg": image_files[1]})
    for spec, sentence in (
        (tmp_path / "cut.tar", r"The shard .*cut.tar cannot be read to its end"),
        (f"pipe:cat {tmp_path}/none.tar", r"The shard pipe:cat .*none.tar cannot be read to its end"),
        (tmp_path / "text.tar", r"The sample a of .*text.tar has 0 images among its suffixes \(txt\)"),
        (
            tmp_path / "two.tar",
            r"has 2 images among its suffixes \(jpg, png, seen.png\)\. Choose one by",
        ),
    ):
        with pytest.raises(UserError, match=sentence):
            seen(ImageStream(WebShards(str(spec)), first_pixels, 5))
    with pytest.raises(UserError, match=r"text\.tar holds no images: its suffixes, .* are txt\. Choose one by"):
        WebShards(str(tmp_path / "text.tar")).count()
    both = WebShards(f"{tmp_path}/cut.tar::pipe:cat {whole}")
    assert both.count() is None
    skipping = ImageStream(both, first_pixels, 4, on_bad_image="skip", shuffle_buffer=0)
    assert len(set(seen(skipping))) == 4
    assert skipping.unreadable == 1
    chosen = WebShards(str(tmp_path / "two.tar"), image_key="jpg")
    assert chosen.count() == 1
    assert torch.equal(
        next(iter(ImageStream(chosen, first_pixels, 1)))["pixel_values"],
        next(iter(ImageStream(NamedShards([image_files[1:2]]), first_pixels, 1)))["pixel_values"],
    )


def test_a_name_that_comes_twice_is_one_bad_image(tmp_path: Path, image_files: list[bytes]) -> None:
    """What follows it is read on."""
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for name, data in zip(("a.png", "a.png", "b.png", "c.PNG", "c.PNG"), image_files, strict=False):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))
    with pytest.raises(UserError, match=r"The shard .*a\.tar has [ac]\.(png|PNG) twice\. Or skip"):
        seen(ImageStream(WebShards(str(tmp_path / "a.tar")), first_pixels, 3))
    for column in (None, "PNG", ".png"):
        shards = WebShards(str(tmp_path / "a.tar"), column)
        assert shards.count() == 3
        found = [one for one in shards.read(0) if not isinstance(one, UserError)]
        assert [one.data for one in found] == [image_files[0], image_files[2], image_files[3]]
        assert len([*shards.read(0)]) == 5


def test_dots_in_names_are_explained(tmp_path: Path, image_files: list[bytes]) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        writer.write({"__key__": "photo", "001.png": image_files[0]})
    with pytest.raises(UserError, match=r"suffixes, which begin at the first dot of a name, are 001\.png"):
        WebShards(str(tmp_path / "a.tar")).count()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset reads URLs with curl")
def test_shards_behind_urls(shards: str) -> None:
    handler = functools.partial(QuietHandler, directory=str(Path(shards).parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        remote = seen(ImageStream(WebShards(f"{base}/{{0..2}}.tar"), first_pixels, 10))
        stops_early = seen(ImageStream(WebShards(f"{base}/0.tar"), first_pixels, 1, shuffle_buffer=0))
        with pytest.raises(UserError, match=rf"The shard {base}/9.tar cannot be read to its end"):
            seen(ImageStream(WebShards(f"{base}/9.tar"), first_pixels, 1))
        server.shutdown()
    assert set(remote) == set(seen(ImageStream(WebShards(shards), first_pixels, 10)))
    assert len(stops_early) == 1
