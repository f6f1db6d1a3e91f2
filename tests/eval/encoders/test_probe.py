"""The probes of frozen representations: the command on real encoders."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eval.encoders.probe import main, retention
from eval.encoders.probing.classifiers import STRENGTHS, vote
from eval.intervals import wilson_interval
from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.preprocessing import Transform
from sparse_vlm.image_files import open_image


def test_teacher_and_student_of_any_count(
    clip_dir: Path, student_dir: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = photos / "probe.json"
    words = ["--teacher", str(clip_dir), "--encoder", str(student_dir), "--tokens", "2,9", "--neighbours", "3"]
    words += ["--train_images", str(photos / "train"), "--test_images", str(photos / "test")]
    assert main([*words, "--device", "cpu", "--dtype", "float32", "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    counts = [result[name] for name in ("neighbours", "train_images", "test_images", "classes", "dtype")]
    assert counts == [3, 12, 9, 3, "float32"]
    encoders = result["encoders"]
    assert {name: each["tokens"] for name, each in encoders.items()} == {
        "teacher": 4,
        "student": 5,
        "student_2_tokens": 2,
        "student_9_tokens": 9,
    }
    of_teacher = encoders["teacher"]["representations"]
    assert list(of_teacher) == ["pooled", "layer_-1", "layer_-2"]
    assert of_teacher["pooled"]["knn"] == {"accuracy": 1, "confidence_95": list(wilson_interval(9, 9))}
    assert of_teacher["pooled"]["linear"]["C"] in STRENGTHS
    assert "retention" not in of_teacher["pooled"]["linear"]
    printed = capsys.readouterr().out
    assert "student (2)" in printed
    assert "9 test images, 12 training images" in printed

    student = SparseFormer.from_pretrained(student_dir)
    transform = Transform(student.config.preprocessing)

    def embed(split: str) -> torch.Tensor:
        paths = sorted((photos / split).rglob("*.png"))
        with torch.inference_mode():
            output = student(torch.stack([transform(open_image(path)) for path in paths]), tokens=2)
        return output.hidden_states[-2][:, 1:].mean(1)

    guesses = vote(embed("test"), embed("train"), torch.arange(3).repeat_interleave(4), 3)
    right = (guesses == torch.arange(3).repeat_interleave(3)).float().mean().item()
    score = encoders["student_2_tokens"]["representations"]["layer_-2"]["knn"]
    assert score["accuracy"] == pytest.approx(right)
    assert score["retention"] == pytest.approx(right / of_teacher["layer_-2"]["knn"]["accuracy"])


def test_an_earlier_block_of_the_teacher(deep_clip_dir: Path, photos: Path) -> None:
    """Its mean of patch tokens is that of the entry of the next block, which is not run."""
    words = ["--teacher", str(deep_clip_dir), "--train_images", str(photos / "train"), "--neighbours", "3"]
    words += ["--test_images", str(photos / "test"), "--cache", str(photos / "cache")]
    for layer in ("-1", "0"):
        assert main([*words, "--teacher_layer", layer]) == 0
    files = sorted((photos / "cache").iterdir(), key=lambda file: file.stat().st_mtime_ns)
    last, first = load_file(files[0]), load_file(files[2])
    torch.testing.assert_close(first["layer_-1"], last["layer_-2"])
    assert not torch.allclose(first["layer_-1"], last["layer_-1"])


def test_an_encoder_alone_has_no_retention(student_dir: Path, photos: Path) -> None:
    output = photos / "probe.json"
    words = ["--encoder", str(student_dir), "--train_images", str(photos / "train"), "--neighbours", "3"]
    assert main([*words, "--test_images", str(photos / "test"), "--output", str(output)]) == 0
    scores = json.loads(output.read_text())["encoders"]["student"]["representations"]["pooled"]
    assert [*scores["knn"], *scores["linear"]] == ["accuracy", "confidence_95", "accuracy", "confidence_95", "C"]


def test_retention_is_paired() -> None:
    """Equal mistakes leave no doubt, and other mistakes leave a wide interval around the same ratio."""
    teacher = [1] * 80 + [0] * 20
    assert retention(teacher, teacher) == {"retention": 1, "retention_confidence_95": [1, 1]}
    crossed = retention([0] * 20 + [1] * 80, teacher)
    low, high = crossed["retention_confidence_95"]
    assert crossed["retention"] == 1
    assert low < 0.9 < 1.1 < high


def test_a_teacher_without_correct_images_has_no_retention() -> None:
    assert retention([1, 0], [0, 0]) == {"retention": None, "retention_confidence_95": None}
    assert retention([1, 0], [1, 0]) == {"retention": 1, "retention_confidence_95": None}, "some draws have none"


def test_classes_are_matched_by_name(clip_dir: Path, photos: Path) -> None:
    """The test images may lack classes of the training images, but not the reverse."""
    for image in (photos / "test" / "blue").iterdir():
        image.unlink()
    (photos / "test" / "blue").rmdir()
    words = ["--teacher", str(clip_dir), "--train_images", str(photos / "train"), "--neighbours", "3"]
    output = photos / "probe.json"
    assert main([*words, "--test_images", str(photos / "test"), "--test_samples", "4", "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    scores = result["encoders"]["teacher"]["representations"]["pooled"]
    assert (scores["knn"]["accuracy"], scores["linear"]["accuracy"], result["test_images"]) == (1, 1, 4)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "Nothing to evaluate: give --teacher, --encoder or both."),
        (["--encoder", "DIR", "--image_size", "64"], "--image_size 64 is for the teacher"),
        (["--encoder", "DIR", "--teacher_layer", "-2"], "--teacher_layer -2 is for the teacher"),
        (["--teacher", "CLIP", "--teacher_layer", "1"], "has no block 1: its blocks are 0 to 0, or -1 to -1."),
        (["--teacher", "CLIP", "--tokens", "9"], "--tokens is for a SparseFormer"),
        (["--teacher", "CLIP", "--neighbours", "0"], "--neighbours must be at least 1, got 0"),
        (["--teacher", "CLIP"], "20 neighbours need as many training images, but there are 12"),
        (["--teacher", "CLIP", "--test_samples", "10"], "--test_samples asks for 10 images, but"),
        (["--teacher", "CLIP", "--train_samples", "0"], "--train_samples must be at least 1, got 0"),
        (
            ["--teacher", "CLIP", "--train_samples", "1", "--neighbours", "1"],
            "All 1 training images have the class 'blue'",
        ),
        (["--teacher", "CLIP", "--cache", "LICENSE/cache"], "Cannot write the directory LICENSE/cache"),
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
