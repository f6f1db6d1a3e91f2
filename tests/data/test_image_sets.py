"""Sets by index: repeatable augmentation, damaged images."""

import logging
from pathlib import Path

import datasets
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from sparse_vlm.data.image_sets import ImageFolder, ImageTable
from sparse_vlm.errors import UserError

crop = v2.Compose([v2.RandomResizedCrop(8), v2.PILToTensor()])


def test_a_crop_follows_from_seed_epoch_and_index(image_folder: Path) -> None:
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


def test_persistent_workers_hear_of_the_epoch(image_folder: Path) -> None:
    dataset = ImageFolder(image_folder, crop)
    loader = DataLoader(dataset, batch_size=5, num_workers=1, persistent_workers=True)
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        batches = torch.cat([batch["pixel_values"] for batch in loader])
        assert torch.equal(batches, torch.stack([dataset[i]["pixel_values"] for i in range(10)]))


def test_every_file_below_the_folder(image_files: list[bytes], tmp_path: Path) -> None:
    """Behind links too, each place once; what a name promises and the disk does not hold is no silent gap."""
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


def test_damaged_files_stop_or_their_successor_takes_their_place(
    image_files: list[bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for index, data in enumerate((image_files[0], image_files[1][:60], b"", image_files[3])):
        (tmp_path / f"{index}.png").write_bytes(data)
    with pytest.raises(UserError, match=r"1\.png cannot be read .*--on_bad_image skip"):
        ImageFolder(tmp_path, crop)[1]
    dataset = ImageFolder(tmp_path, crop, on_bad_image="skip")
    with caplog.at_level(logging.WARNING):
        assert torch.equal(dataset[1]["pixel_values"], dataset[3]["pixel_values"])
    assert dataset.unreadable == 2
    assert [f"{index}.png" in caplog.text for index in range(4)] == [False, True, True, False]
    list(DataLoader(dataset, num_workers=2))
    assert dataset.unreadable == 2 + 3
    for name in ("0.png", "3.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match="None of the 4 images can be read"):
        dataset[0]


def test_cells_of_a_table_may_be_paths_or_empty(image_folder: Path) -> None:
    path = str(sorted(image_folder.rglob("*.png"))[0])
    features = datasets.Features({"image": datasets.Image(decode=False)})
    cells = [{"bytes": None, "path": path}, {"bytes": None, "path": f"{path}.gone"}, None]
    table = ImageTable(datasets.Dataset.from_dict({"image": cells}, features=features), "image", crop)
    assert torch.equal(table[0]["pixel_values"], ImageFolder(image_folder, crop)[0]["pixel_values"])
    for index, sentence in ((1, r"gone \(row 1 of 'image'\) cannot be read"), (2, "row 2 of 'image' is missing")):
        with pytest.raises(UserError, match=sentence):
            table[index]
