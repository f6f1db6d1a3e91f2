"""Zero-shot classification with a real open_clip text encoder, a real teacher and its SparseFormer."""

import json
from pathlib import Path

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from eval.encoders.zero_shot import accuracy, easy_vqa_images, main
from sparse_vlm.encoder import SparseFormer
from sparse_vlm.errors import UserError
from sparse_vlm.image_files import open_image


def test_the_classes_of_the_real_test_images() -> None:
    labels = easy_vqa_images("test")
    assert len(labels.paths) == len(labels.values) == 888
    assert len(set(labels.classes)) == 24
    assert set(labels.values.tolist()) == set(range(24))
    assert all(path.is_file() for path in labels.paths)
    assert labels.classes[0] == "a black circle"


def test_accuracy_counts_the_nearest_class() -> None:
    classes = torch.eye(3)
    images, labels = torch.tensor([[2.0, 1, 0], [0, 1, 0.9], [0, 1, 2], [1, 0, 0]]), torch.tensor([0, 1, 2, 1])
    score = accuracy(images, classes, labels)
    assert (score.value, score.count) == (0.75, 4)
    assert score.interval[0] < 0.75 < score.interval[1]
    with pytest.raises(UserError, match="3 channels, but text embeddings have 4"):
        accuracy(images, torch.eye(4), labels)


@pytest.mark.slow
def test_teacher_and_student_are_compared(
    clip_dir: Path, tiny_encoder: SparseFormer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The teacher's accuracy is that of open_clip's own model and preprocessing."""
    tiny_encoder.save_pretrained(tmp_path / "encoder")
    output = tmp_path / "zero_shot.json"
    command = ["--teacher", str(clip_dir), "--encoder", str(tmp_path / "encoder"), "--output", str(output)]
    assert main([*command, "--tokens", "2,5", "--dtype", "float32"]) == 0
    result = json.loads(output.read_text())
    assert (result["images"], result["classes"], result["dtype"]) == (888, 24, "float32")
    assert f"teacher: {result['teacher']:.2%} of 888 images" in capsys.readouterr().out
    assert list(result["confidence_95"]) == ["teacher", "student", "student_2_tokens", "student_5_tokens"]
    assert result["confidence_95"]["student"][0] <= result["student"] <= result["confidence_95"]["student"][1]

    clip, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{clip_dir}")
    clip.eval()
    labels = easy_vqa_images("test")
    tokenize = open_clip.get_tokenizer(f"local-dir:{clip_dir}")
    with torch.inference_mode():
        classes = F.normalize(clip.encode_text(tokenize(list(labels.classes))), dim=-1)
        images = clip.encode_image(torch.stack([preprocess(open_image(path)) for path in labels.paths]))
    assert result["teacher"] == pytest.approx(accuracy(images, classes, labels.values).value, abs=2 / 888)


def test_a_teacher_without_a_text_encoder_is_refused(
    tmp_path: Path, tiny_encoder: SparseFormer, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_encoder.save_pretrained(tmp_path / "encoder")
    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), weights)
    assert main(["--teacher", f"timm:test_vit@{weights}", "--encoder", str(tmp_path / "encoder")]) == 2
    assert "has no text encoder" in capsys.readouterr().err
