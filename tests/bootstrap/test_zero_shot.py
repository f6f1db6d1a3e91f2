"""Zero-shot classification equals open_clip's."""

from pathlib import Path

import open_clip
import pytest
import torch

from sparse_vlm.bootstrap import open_teacher
from sparse_vlm.bootstrap.zero_shot import class_embeddings, hits, imagenet_prompts, read_class_names
from sparse_vlm.errors import UserError


def test_class_embeddings_equal_open_clips(clip_dir: Path) -> None:
    names, templates = imagenet_prompts()
    assert (len(names), len(templates)) == (1000, 80)
    names = names[:3]
    clip = open_clip.create_model(f"local-dir:{clip_dir}").eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{clip_dir}")
    expected = open_clip.build_zero_shot_classifier(clip, tokenizer, names, templates).T
    text = open_teacher(str(clip_dir)).text
    assert text is not None
    torch.testing.assert_close(class_embeddings(text, names, templates), expected, atol=2e-6, rtol=1e-4)


def test_given_class_names_use_the_same_templates() -> None:
    names, templates = imagenet_prompts(["red", "green"])
    assert list(names) == ["red", "green"]
    assert templates[0]("red") == "a bad photo of a red."
    assert imagenet_prompts([])[0] == []


def test_the_nearest_class_does_not_depend_on_the_length() -> None:
    images = torch.tensor([[9.0, 1, 0], [0, 1, 0.9], [0, 0.1, 0.2], [1, 0, 0]])
    assert hits(images, torch.eye(3), torch.tensor([0, 1, 2, 1])).tolist() == [True, True, True, False]
    with pytest.raises(UserError, match="3 channels, but text embeddings have 4"):
        hits(images, torch.eye(4), torch.tensor([0, 1, 2, 1]))


def test_class_names_are_read_from_lines(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("red fox\ngreen\n")
    assert read_class_names(file) == ["red fox", "green"]
    file.write_text("\n".join(open_clip.IMAGENET_CLASSNAMES))  # two of its names occur twice
    assert read_class_names(file) == list(open_clip.IMAGENET_CLASSNAMES)
    for text, sentence in (("red\n\n", r"Line 2 .* is empty"), ("", r"names\.txt is empty: write one name per line")):
        file.write_text(text)
        with pytest.raises(UserError, match=sentence):
            read_class_names(file)
    file.write_bytes("Bär\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"The class names .*names\.txt are not UTF-8 text: 'utf-8' codec"):
        read_class_names(file)
    with pytest.raises(UserError, match=r"no file of class names .*absent"):
        read_class_names(tmp_path / "absent")
