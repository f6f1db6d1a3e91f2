"""Class folders and tables of labels, and their errors."""

from pathlib import Path

import pytest
import torch
from torchvision.transforms import v2

from sparse_vlm.data.images.labels import LabelledImages, read_class_folders, read_label_table
from sparse_vlm.data.images.sets import HeldOutImages
from sparse_vlm.errors import UserError


def test_class_folders(image_folder: Path) -> None:
    labels = read_class_folders(image_folder)
    assert (labels.classes, labels.multi_label) == (("0", "1"), False)
    assert labels.values.tolist() == [0] * 5 + [1] * 5
    assert [path.parent.name for path in labels.paths] == ["0"] * 5 + ["1"] * 5
    item = LabelledImages(labels, v2.PILToTensor())[7]
    assert item["pixel_values"].shape == (3, 20, 24)
    assert item["labels"] == 1


def test_a_table(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,cat,dog\n0/0.png,1,1\n1/1.png,0,1\n", encoding="utf-8-sig")
    labels = read_label_table(tmp_path / "a.csv", image_folder)
    assert (labels.classes, labels.multi_label) == (("cat", "dog"), True)
    assert torch.equal(labels.values, torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    assert LabelledImages(labels, v2.PILToTensor())[1]["labels"].tolist() == [0, 1]


def test_a_substitute_has_its_own_label(image_folder: Path, image_files: list[bytes], tmp_path: Path) -> None:
    for name, data in (("a", b"not an image"), ("b", image_files[0])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "image.png").write_bytes(data)
    dataset = LabelledImages(read_class_folders(tmp_path), v2.PILToTensor(), on_bad_image="skip")
    assert [item["labels"].item() for item in dataset] == [1, 1]
    assert dataset.unreadable == 1


def test_unreadable_held_out_images_are_not_replaced(image_files: list[bytes], tmp_path: Path) -> None:
    for name, data in (("a", b"not an image"), ("b", image_files[0])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "image.png").write_bytes(data)
    labels = read_class_folders(tmp_path)
    with pytest.raises(UserError, match="--on_bad_image skip"):
        HeldOutImages(LabelledImages(labels, v2.PILToTensor()))[0]
    held_out = HeldOutImages(LabelledImages(labels, v2.PILToTensor(), on_bad_image="skip"))
    assert [(item["labels"].item(), item["readable"].item()) for item in held_out] == [(0, False), (1, True)]
    assert not held_out[0]["pixel_values"].any()
    assert [item["labels"].item() for item in HeldOutImages(held_out.images, [1])] == [1]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("image,cat\n", "needs a header"),
        ("image\n0/0.png\n", "needs a header"),
        ("image,cat,cat\n0/0.png,1,0\n", "names a class twice or not at all: image, cat, cat"),
        ("image,cat,dog\n0/0.png,1\n", "Line 2 of .* has 2 columns, but the header has 3"),
        ("image,cat\n0/0.png,1\n1/1.png,yes\n", "Line 3 of .* has the label 'yes': write 0 or 1"),
        ("image,cat\n0/0.png,1\nnone.png,0\n", r"The image .*none.png of .* does not exist \(1 of 2 are missing\)"),
    ],
)
def test_a_wrong_table_is_an_error(text: str, sentence: str, image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_label_table(tmp_path / "a.csv", image_folder)


def test_a_table_in_another_encoding_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("image,Bär\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"The table of labels .*a\.csv is not a CSV file in UTF-8: 'utf-8' codec"):
        read_label_table(tmp_path / "a.csv", tmp_path)


def test_wrong_folders_are_errors(image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no table of labels"):
        read_label_table(tmp_path / "none.csv", tmp_path)
    with pytest.raises(UserError, match=r"There is no folder .*none"):
        read_class_folders(tmp_path / "none")
    with pytest.raises(UserError, match="0 has 0 subfolders: there must be one per class"):
        read_class_folders(image_folder / "0")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=r"The folder .*a holds no image files"):
        read_class_folders(tmp_path)
