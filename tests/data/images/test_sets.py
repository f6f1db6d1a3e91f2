"""Indexed image sets: reproducible augmentation, damaged images."""

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from sparse_vlm.data.images.sets import ImageFolder, ImageTable, IndexedImages
from sparse_vlm.errors import UserError

crop = v2.Compose([v2.RandomResizedCrop(8), v2.PILToTensor()])


def test_a_crop_depends_on_seed_epoch_and_index(image_folder: Path) -> None:
    dataset = ImageFolder(image_folder, crop, seed=3)
    before = torch.random.get_rng_state()
    first = [dataset[i]["pixel_values"] for i in range(10)]
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(dataset[7]["pixel_values"], first[7])
    dataset.set_epoch(1)
    assert not torch.equal(dataset[7]["pixel_values"], first[7])
    dataset.set_epoch(0)
    assert torch.equal(dataset[7]["pixel_values"], first[7])
    other = ImageFolder(image_folder, crop, seed=4)
    assert not torch.equal(other[7]["pixel_values"], first[7])


def test_persistent_workers_see_the_epoch(image_folder: Path) -> None:
    dataset = ImageFolder(image_folder, crop)
    loader = DataLoader(dataset, batch_size=5, num_workers=1, persistent_workers=True)
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        batches = torch.cat([batch["pixel_values"] for batch in loader])
        assert torch.equal(batches, torch.stack([dataset[i]["pixel_values"] for i in range(10)]))


def test_every_file_below_the_folder_is_found(image_files: list[bytes], tmp_path: Path) -> None:
    """Links are followed, but not in circles. A broken link is an error, not a silent gap."""
    folder, elsewhere = tmp_path / "images", tmp_path / "elsewhere"
    for place in (folder / "a", elsewhere):
        place.mkdir(parents=True)
        (place / "1.png").write_bytes(image_files[0])
    (folder / "b.png").mkdir()
    (folder / "c").symlink_to(elsewhere)
    (folder / "a" / "loop").symlink_to(folder)
    dataset = ImageFolder(folder, crop)
    assert list(dataset.paths) == [str(folder / "a" / "1.png"), str(folder / "c" / "1.png")]
    (folder / "gone.png").symlink_to(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"gone\.png does not exist"):
        ImageFolder(folder, crop)[2]


def test_damaged_files_stop_or_are_replaced(
    image_files: list[bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for index, data in enumerate((image_files[0], image_files[1][:60], b"", image_files[3])):
        (tmp_path / f"{index}.png").write_bytes(data)
    with pytest.raises(UserError, match=r"1\.png cannot be read .*--on_bad_image skip"):
        ImageFolder(tmp_path, crop)[1]
    dataset = ImageFolder(tmp_path, crop, on_bad_image="skip")
    with caplog.at_level(logging.WARNING):
        readable = [dataset[index]["pixel_values"] for index in (0, 3)]
        assert any(torch.equal(dataset[1]["pixel_values"], pixels) for pixels in readable)
        assert dataset.unreadable == 1
        dataset[2]
    assert dataset.unreadable == 2
    assert [f"{index}.png" in caplog.text for index in range(4)] == [False, True, True, False]
    list(DataLoader(dataset, num_workers=2))
    assert dataset.unreadable == 2 + 2
    for name in ("0.png", "3.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match="None of the 4 images can be read"):
        dataset[0]


class CountedImages(IndexedImages):
    """Images whose pixel is their index, unreadable below `readable_from`. Counts the reads of each image."""

    def __init__(self, count: int, readable_from: int, **options: Any) -> None:
        super().__init__(count, v2.PILToTensor(), **options)
        self.readable_from = readable_from
        self.reads = torch.zeros(count, dtype=torch.int64).share_memory_()

    def read(self, index: int) -> Image.Image:
        self.reads[index] += 1
        if index < self.readable_from:
            raise UserError(f"{index} is bad.")
        return Image.new("L", (1, 1), index).convert("RGB")

    def seen(self, indices: Iterable[int]) -> list[int]:
        return [int(self[index]["pixel_values"][0, 0, 0]) for index in indices]


def test_a_block_of_bad_images_has_many_substitutes() -> None:
    images = CountedImages(200, 100, on_bad_image="skip")
    substitutes = images.seen(range(100))
    assert min(substitutes) >= 100
    assert max(Counter(substitutes).values()) <= 6
    assert images.unreadable == 100
    assert images.reads[:100].tolist() == [1] * 100  # each is read only once
    assert images.seen(range(100)) == substitutes
    assert images.unreadable == 200
    assert images.reads[:100].tolist() == [1] * 100
    other = CountedImages(200, 100, on_bad_image="skip")
    assert other.seen(reversed(range(100))) == substitutes[::-1]  # whichever were known to be unreadable before
    other.set_epoch(1)
    assert other.seen(range(100)) != substitutes
    assert CountedImages(200, 100, on_bad_image="skip", seed=1).seen(range(100)) != substitutes


def test_the_only_readable_image_is_found() -> None:
    images = CountedImages(250, 249, on_bad_image="skip")
    assert images.seen([0, 1]) == [249, 249]
    assert images.reads[:249].max() == 1


def test_data_workers_share_which_images_are_unreadable() -> None:
    images = CountedImages(40, 20, on_bad_image="skip")
    loader = DataLoader(images, num_workers=1)
    list(loader)
    list(loader)  # a new worker
    assert images.reads[:20].tolist() == [1] * 20
    assert images.unreadable == 40


def test_cells_of_a_table_may_be_paths_or_empty(image_folder: Path) -> None:
    path = str(sorted(image_folder.rglob("*.png"))[0])
    features = datasets.Features({"image": datasets.Image(decode=False)})
    cells = [{"bytes": None, "path": path}, {"bytes": None, "path": f"{path}.gone"}, None]
    table = ImageTable(datasets.Dataset.from_dict({"image": cells}, features=features), "image", crop)
    assert torch.equal(table[0]["pixel_values"], ImageFolder(image_folder, crop)[0]["pixel_values"])
    for index, sentence in ((1, r"gone \(row 1 of 'image'\) cannot be read"), (2, "row 2 of 'image' is missing")):
        with pytest.raises(UserError, match=sentence):
            table[index]
