"""k-nearest-neighbour accuracy: the vote on known representations, and the command on real encoders."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eval.encoders.knn import main, vote
from sparse_vlm.bootstrap import bootstrap_from, open_teacher
from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.preprocessing import Transform
from sparse_vlm.image_files import open_image


def test_near_images_weigh_more_than_several_far_ones() -> None:
    def at(*degrees: float) -> torch.Tensor:
        return torch.tensor([[math.cos(math.radians(each)), math.sin(math.radians(each))] for each in degrees])

    train, labels = at(10, 60, 70, 180), torch.tensor([1, 0, 0, 2])
    assert vote(3 * at(0, 65), 2 * train, labels, neighbours=3).tolist() == [1, 0]
    assert vote(at(0), train, labels, neighbours=3, temperature=100.0).tolist() == [0]  # a plain majority
    assert vote(at(0, 180), train, labels, neighbours=1).tolist() == [1, 2]


def test_many_images_are_classified_in_parts() -> None:
    generator = torch.Generator().manual_seed(0)
    train, labels = torch.randn(30, 4, generator=generator), torch.arange(30) % 3
    test = torch.randn(1030, 4, generator=generator)
    alone = torch.cat([vote(each[None], train, labels, 5) for each in test[-10:]])
    assert torch.equal(vote(test, train, labels, 5)[-10:], alone)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Noise over one of three colours: 4 training and 3 test images of each."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 3)):
        for name, colour in (("blue", (0, 0, 255)), ("green", (0, 255, 0)), ("red", (255, 0, 0))):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = 0.5 * np.array(colour) + generator.integers(0, 128, (40, 40, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / split / name / f"{index}.png")
    return tmp_path


@pytest.fixture
def student_dir(clip_dir: Path, tmp_path: Path) -> Path:
    student, _ = bootstrap_from(open_teacher(str(clip_dir)), tokens=5, stem_channels=8)
    student.save_pretrained(tmp_path / "student")
    return tmp_path / "student"


def test_teacher_and_student_of_any_count(
    clip_dir: Path, student_dir: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = photos / "knn.json"
    words = ["--teacher", str(clip_dir), "--encoder", str(student_dir), "--tokens", "2,9", "--neighbours", "3"]
    words += ["--train_images", str(photos / "train"), "--test_images", str(photos / "test")]
    assert main([*words, "--device", "cpu", "--dtype", "float32", "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    assert [result[name] for name in ("neighbours", "train_images", "test_images", "classes")] == [3, 12, 9, 3]
    assert list(result["confidence_95"]) == ["teacher", "student", "student_2_tokens", "student_9_tokens"]
    assert result["teacher"] == 1, "colours are easy, even for random weights"
    printed = capsys.readouterr().out
    assert "100.00%" in printed
    assert "9 test images, 12 training images" in printed

    student = SparseFormer.from_pretrained(student_dir)
    transform = Transform(student.config.preprocessing)

    def embed(split: str) -> torch.Tensor:
        paths = sorted((photos / split).rglob("*.png"))
        with torch.inference_mode():
            return student(torch.stack([transform(open_image(path)) for path in paths]), tokens=2).pooled

    guesses = vote(embed("test"), embed("train"), torch.arange(3).repeat_interleave(4), 3)
    right = (guesses == torch.arange(3).repeat_interleave(3)).float().mean().item()
    assert result["student_2_tokens"] == pytest.approx(right)


def test_classes_are_matched_by_name(clip_dir: Path, photos: Path) -> None:
    """The test images may lack classes of the training images, but not the reverse."""
    for image in (photos / "test" / "blue").iterdir():
        image.unlink()
    (photos / "test" / "blue").rmdir()
    words = ["--teacher", str(clip_dir), "--train_images", str(photos / "train"), "--neighbours", "3"]
    output = photos / "knn.json"
    assert main([*words, "--test_images", str(photos / "test"), "--test_samples", "4", "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    assert (result["teacher"], result["test_images"]) == (1, 4)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "Nothing to evaluate: give --teacher, --encoder or both."),
        (["--encoder", "DIR", "--image_size", "64"], "--image_size 64 is for the teacher"),
        (["--teacher", "CLIP", "--tokens", "9"], "--tokens is for a SparseFormer"),
        (["--teacher", "CLIP", "--neighbours", "0"], "--neighbours must be at least 1, got 0"),
        (["--teacher", "CLIP"], "20 neighbours need as many training images, but there are 12"),
        (["--teacher", "CLIP", "--test_samples", "10"], "--test_samples asks for 10 images, but"),
    ],
)
def test_bad_options_are_one_sentence(
    words: list[str], sentence: str, clip_dir: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(clip_dir) if word == "CLIP" else word for word in words]
    images = ["--train_images", str(photos / "train"), "--test_images", str(photos / "test")]
    assert main([*images, *words]) == 2
    assert sentence in capsys.readouterr().err


def test_a_class_without_training_images_is_refused(
    clip_dir: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "train" / "red").rename(photos / "train" / "crimson")
    words = ["--teacher", str(clip_dir), "--neighbours", "3", "--train_images", str(photos / "train")]
    assert main([*words, "--test_images", str(photos / "test")]) == 2
    assert "No training image has the class 'red' of the test images." in capsys.readouterr().err
