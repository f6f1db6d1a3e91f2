"""Zero-shot classification gives open_clip's numbers."""

from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image

from sparse_vlm.bootstrap import open_teacher
from sparse_vlm.bootstrap.zero_shot import LabelledImages, class_embeddings, hits, imagenet_prompts, read_class_names
from sparse_vlm.encoder import Preprocessing
from sparse_vlm.encoder.preprocessing import Transform
from sparse_vlm.errors import UserError


def test_class_embeddings_are_open_clips(clip_dir: Path) -> None:
    names, templates = imagenet_prompts()
    assert (len(names), len(templates)) == (1000, 80)
    names = names[:3]
    clip = open_clip.create_model(f"local-dir:{clip_dir}").eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{clip_dir}")
    expected = open_clip.build_zero_shot_classifier(clip, tokenizer, names, templates).T
    text = open_teacher(str(clip_dir)).text
    assert text is not None
    torch.testing.assert_close(class_embeddings(text, names, templates), expected, atol=2e-6, rtol=1e-4)


def test_a_given_class_list_takes_the_same_templates() -> None:
    names, templates = imagenet_prompts(["red", "green"])
    assert list(names) == ["red", "green"]
    assert templates[0]("red") == "a bad photo of a red."


def test_the_nearest_class_counts_whatever_the_length() -> None:
    images = torch.tensor([[9.0, 1, 0], [0, 1, 0.9], [0, 0.1, 0.2], [1, 0, 0]])
    assert hits(images, torch.eye(3), torch.tensor([0, 1, 2, 1])).tolist() == [True, True, True, False]
    with pytest.raises(UserError, match="3 channels, text embeddings 4"):
        hits(images, torch.eye(4), torch.tensor([0, 1, 2, 1]))


def test_sorted_folders_are_the_classes(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (9, 9), "red").save(tmp_path / name / "x.png")
    images = LabelledImages(tmp_path, Transform(Preprocessing(resize=8, crop=8)))
    assert images.folders == ["a", "b"]
    assert [images[index]["labels"] for index in range(len(images))] == [0, 1]
    assert images[0]["pixel_values"].shape == (3, 8, 8)


@pytest.mark.parametrize("kind", ["missing", "file", "no classes", "empty class"])
def test_a_folder_without_classes_is_a_sentence(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    if kind == "file":
        folder.write_text("")
    elif kind != "missing":
        (folder / "a").mkdir(parents=True)
        if kind == "no classes":
            (folder / "a").rmdir()
    with pytest.raises(UserError, match=r"folder is no folder with one folder of images per class: "):
        LabelledImages(folder, Transform(Preprocessing()))


def test_class_names_are_lines(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("red fox\ngreen\n")
    assert read_class_names(file) == ["red fox", "green"]
    for text, sentence in (("red\n\n", "Line 2 .* is empty"), ("red\nred\n", "Line 2 .* is a repetition")):
        file.write_text(text)
        with pytest.raises(UserError, match=sentence):
            read_class_names(file)
    with pytest.raises(UserError, match=r"no file of class names .*absent"):
        read_class_names(tmp_path / "absent")
