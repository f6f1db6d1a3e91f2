"""Nearest neighbours and closest tokens: on known embeddings, and the whole command on a real student."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eval.encoders.neighbours import closest_tokens, main, nearest, overlap
from sparse_vlm.bootstrap import bootstrap_from, open_teacher


def test_nearest_depends_on_the_angle_only() -> None:
    embeddings = torch.tensor([[1.0, 0.0], [10.0, 1.0], [0.0, 1.0]])
    assert nearest(embeddings, 2).tolist() == [[1, 2], [0, 2], [1, 0]]


def test_overlap_ignores_the_order() -> None:
    assert overlap(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[2, 1], [3, 5]])) == 0.75


def test_equal_tokens_have_cosine_one() -> None:
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]], [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]])
    assert closest_tokens(tokens).tolist() == [1.0, 0.0]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(7):
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


def test_a_new_student_is_compared_with_its_teacher(clip_dir: Path, images: Path, tmp_path: Path) -> None:
    student, _ = bootstrap_from(open_teacher(str(clip_dir)), tokens=5, stem_channels=8)
    student.save_pretrained(tmp_path / "student")
    words = ["--teacher", str(clip_dir), "--encoder", str(tmp_path / "student"), "--images", str(images)]
    assert main([*words, "--dtype", "float32", "--output", str(tmp_path / "out.json")]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert (result["images"], result["dtype"]) == (7, "float32")
    assert -1 <= result["cosine"] < 0.9  # nothing was trained
    assert result["cosine"] < result["cosine_of_mean"] < 1
    assert 0 <= result["same_nearest"] <= 1
    assert result["closest_tokens"] < 1 - 1e-6


def test_an_earlier_block_of_the_teacher(
    deep_clip_dir: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A student of the last block has another width of its representation, so the first block needs its own."""
    student, _ = bootstrap_from(open_teacher(str(deep_clip_dir), layer=0), tokens=5, stem_channels=8)
    student.save_pretrained(tmp_path / "student")
    words = ["--teacher", str(deep_clip_dir), "--encoder", str(tmp_path / "student"), "--images", str(images)]
    assert main([*words, "--teacher_layer", "0"]) == 0
    assert "images: 7" in capsys.readouterr().out
    assert main([*words, "--teacher_layer", "2"]) == 2
    assert "has no block 2: its blocks are 0 to 1, or -1 to -2." in capsys.readouterr().err


def test_too_few_images_are_refused(
    clip_dir: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student, _ = bootstrap_from(open_teacher(str(clip_dir)), tokens=5, stem_channels=8)
    student.save_pretrained(tmp_path / "student")
    for index in (5, 6):
        (images / f"{index}.png").unlink()
    assert main(["--teacher", str(clip_dir), "--encoder", str(tmp_path / "student"), "--images", str(images)]) == 2
    assert "has 5 images; five neighbours need at least 6" in capsys.readouterr().err
