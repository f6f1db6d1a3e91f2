"""The dense measure: the command on a real teacher and student, and its errors."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from eval.encoders.dense import main
from sparse_vlm.bootstrap import open_teacher
from sparse_vlm.encoder.preprocessing import Transform
from sparse_vlm.image_files import open_image


def patches(clip_dir: Path, folder: Path) -> torch.Tensor:
    """The teacher's patch tokens after the last block, float64[N, P, C]."""
    teacher = open_teacher(str(clip_dir))
    transform = Transform(teacher.preprocessing)
    images = torch.stack([transform(open_image(path)) for path in sorted(folder.rglob("*.png"))])
    return teacher.tokens(images)[:, 1:].double()


def test_patches_are_rebuilt(
    clip_dir: Path, student_dir: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = photos / "dense.json"
    words = ["--teacher", str(clip_dir), "--encoder", str(student_dir), "--tokens", "1,4", "--batch_size", "5"]
    words += ["--train_images", str(photos / "train"), "--test_images", str(photos / "test"), "--dtype", "float32"]
    assert main([*words, "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    assert [result[name] for name in ("patches", "train_images", "test_images", "dtype")] == [4, 12, 9, "float32"]
    assert {name: scores.pop("tokens") for name, scores in result["encoders"].items()} == {
        "student": 5,
        "student_1_tokens": 1,
        "student_4_tokens": 4,
    }
    train, test = (patches(clip_dir, photos / split) for split in ("train", "test"))
    mean, deviation = train.mean((0, 1)), train.std((0, 1), correction=0)
    truth, guess = (test - mean) / deviation, ((train.mean(0) - mean) / deviation).expand(9, -1, -1)
    floor = result["position_mean"]
    assert floor["r2"] == pytest.approx((1 - (truth - guess).square().sum() / truth.square().sum()).item(), abs=1e-4)
    assert floor["cosine"] == pytest.approx(torch.cosine_similarity(truth, guess, dim=-1).mean().item(), abs=1e-4)
    for scores in result["encoders"].values():
        assert list(scores) == ["layer_-2", "layer_-1", "pooled_teacher"]
        for each in scores.values():
            low, high = each["confidence_95"]
            assert low <= each["r2"] <= high <= 1
            assert each["ridge"] > 0
    pooled = [result["encoders"][name]["pooled_teacher"]["r2"] for name in ("student_1_tokens", "student_4_tokens")]
    assert floor["r2"] < pooled[0] < pooled[1] < 1
    printed = capsys.readouterr().out
    assert "position_mean" in printed
    assert "student (4)" in printed


def test_a_single_training_image_is_refused(
    clip_dir: Path, student_dir: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--teacher", str(clip_dir), "--encoder", str(student_dir), "--train_samples", "1"]
    assert main([*words, "--train_images", str(photos / "train"), "--test_images", str(photos / "test")]) == 2
    assert "One training image is too few" in capsys.readouterr().err


def test_a_diverged_student_is_named(
    clip_dir: Path, student_dir: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = load_file(student_dir / "model.safetensors")
    save_file(
        {name: torch.full_like(each, torch.nan) for name, each in weights.items()}, student_dir / "model.safetensors"
    )
    words = ["--teacher", str(clip_dir), "--encoder", str(student_dir)]
    assert main([*words, "--train_images", str(photos / "train"), "--test_images", str(photos / "test")]) == 2
    assert "The tokens of student are NaN or infinite for some image." in capsys.readouterr().err
