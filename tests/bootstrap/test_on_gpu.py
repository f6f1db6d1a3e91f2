"""The bootstrapping task on a fake GPU: the teacher, which is not a submodule, follows the images to the GPU."""

from pathlib import Path

import pytest
import torch
from timm.utils import ModelEmaV3

from sparse_vlm.bootstrap import BootstrapTask, bootstrap_from, open_teacher
from sparse_vlm.bootstrap.objective import LossWeights
from sparse_vlm.bootstrap.zero_shot import class_embeddings, hits
from tests.fake_gpu import assert_on_gpu, fake_gpu

ALL = LossWeights(alignment=1, token=1, feature=1, view=1, entry=1, grid=1)


@pytest.fixture
def task(clip_dir: Path) -> BootstrapTask:
    """A task with every term of the loss and two views."""
    teacher, second = open_teacher(str(clip_dir)), open_teacher(str(clip_dir), image_size=48)
    student, _ = bootstrap_from(teacher, tokens=4, stem_channels=8, repeats=2)
    return BootstrapTask(student, teacher, ALL, second, torch.bfloat16, normalization="standardize")


@pytest.mark.slow
@pytest.mark.parametrize("autocast", [False, True])
def test_every_term_of_the_loss(task: BootstrapTask, autocast: bool) -> None:
    with fake_gpu() as gpu, torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        gpu.move(task)
        for teacher in task._unregistered:
            gpu.move(teacher)
        task.measure_targets(torch.randn(3, 3, 32, 32, device="cuda"))
        losses = task(torch.randn(2, 3, 48, 48, device="cuda"))
        assert set(losses) == {"loss", "cosine", *(f"{name}_loss" for name in vars(ALL))}
        assert_on_gpu(losses)


@pytest.mark.slow
def test_the_moving_average(task: BootstrapTask) -> None:
    average = ModelEmaV3(task.student, 0.9, use_warmup=True, dtype=torch.float32)
    with fake_gpu() as gpu:
        gpu.move(task.student)
        gpu.move(average)
        average.update(task.student, step=1)
        assert_on_gpu(*average.module.parameters())
        assert_on_gpu(average.module(torch.randn(2, 3, 32, 32, device="cuda")).pooled)


def test_zero_shot(clip_dir: Path) -> None:
    teacher = open_teacher(str(clip_dir))
    assert teacher.text is not None
    with fake_gpu() as gpu:
        gpu.move(teacher)
        classes = class_embeddings(teacher.text, ["a cat", "a dog"])
        images = teacher(torch.randn(3, 3, 32, 32, device="cuda"))
        assert_on_gpu(classes, hits(images, classes, torch.zeros(3, dtype=torch.long, device="cuda")))
