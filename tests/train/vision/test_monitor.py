"""The measurements of bootstrapping against values computed image by image."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from sparse_vlm.bootstrap import BootstrapTask, bootstrap_from, open_teacher
from sparse_vlm.errors import UserError
from train.vision.monitor import measure_alignment, measure_zero_shot, open_zero_shot_task


def batches(images: Tensor, labels: Tensor, sizes: tuple[int, ...]) -> Iterator[dict[str, Tensor]]:
    for pixels, wanted in zip(images.split(sizes), labels.split(sizes), strict=True):
        yield {"pixel_values": pixels, "labels": wanted, "readable": torch.ones(len(pixels), dtype=torch.bool)}


def alone(tensor: Tensor) -> Tensor:
    return tensor


def test_alignment_is_the_mean_over_images_not_over_batches(clip_dir: Path) -> None:
    torch.manual_seed(0)
    teacher = open_teacher(str(clip_dir))
    student, _ = bootstrap_from(teacher, tokens=4, stem_channels=8, repeats=2)
    task, images = BootstrapTask(student.eval(), teacher), torch.randn(5, 3, 32, 32)
    found = measure_alignment(task, student, batches(images, torch.zeros(5), (4, 1)), alone)
    output = student(images)
    cosine = F.cosine_similarity(output.pooled, teacher(images))
    assert found.images == 5
    assert found.cosine == pytest.approx(cosine.mean().item(), abs=1e-6)
    deviations = (seen - seen.mean(0) for seen in (output.pooled, teacher(images)))
    assert found.centered_cosine == pytest.approx(F.cosine_similarity(*deviations).mean().item(), abs=1e-6)
    size = (output.rois[-1][..., 2:] - output.rois[-1][..., :2]).abs().prod(-1).sqrt()
    assert found.rois.size == pytest.approx(size.mean().item(), abs=1e-6)
    assert found.rois.collapse() is None
    with pytest.raises(UserError, match="holds no image"):
        measure_alignment(task, student, iter(()), alone)


def test_zero_shot_accuracy_counts_images() -> None:
    classes, labels = torch.eye(3), torch.tensor([0, 1, 2, 0, 0])
    images = torch.eye(3)[torch.tensor([0, 1, 2, 1, 2])].view(5, 3, 1, 1)
    accuracy = measure_zero_shot(lambda x: x.flatten(1) * 5, classes, batches(images, labels, (4, 1)), alone)
    assert (accuracy.value, accuracy.images, accuracy.unreadable) == (pytest.approx(3 / 5), 5, 0)


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / "labelled" / name).mkdir(parents=True)
        Image.new("RGB", (40, 40), "red").save(tmp_path / "labelled" / name / "x.png")
    return tmp_path / "labelled"


def test_a_zero_shot_task_has_an_embedding_per_folder(clip_dir: Path, labelled: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    task = open_zero_shot_task(open_teacher(str(clip_dir)), labelled, tmp_path / "names.txt")
    assert task.classes.shape == (2, 24)
    assert torch.allclose(task.classes.norm(dim=-1), torch.ones(2))
    assert task.images[1]["pixel_values"].shape == (3, 32, 32)


def test_names_and_folders_must_match_in_number(clip_dir: Path, labelled: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\n")
    teacher = open_teacher(str(clip_dir))
    with pytest.raises(UserError, match="has 2 class folders, but ImageNet-1k has 1000 names"):
        open_zero_shot_task(teacher, labelled, None)
    with pytest.raises(UserError, match=r"has 2 class folders, but .*names.txt has 1 names"):
        open_zero_shot_task(teacher, labelled, tmp_path / "names.txt")


def test_a_teacher_without_a_text_side_is_refused(labelled: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), weights)
    with pytest.raises(UserError, match="needs a teacher with a text side"):
        open_zero_shot_task(open_teacher(f"timm:test_vit@{weights}"), labelled, None)
