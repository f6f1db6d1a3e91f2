"""The task: the loss is 1 − cosine, the teacher is no part of what is trained or saved, and training aligns."""

from pathlib import Path

import torch
import torch.nn.functional as F

from sparse_vlm.bootstrap import BootstrapTask, bootstrap_from, open_teacher


def _task(clip_dir: Path) -> BootstrapTask:
    torch.manual_seed(0)
    teacher = open_teacher(str(clip_dir))
    student, _ = bootstrap_from(teacher, tokens=4, stem_channels=8, repeats=2)
    return BootstrapTask(student, teacher)


def test_loss_is_one_minus_the_cosine(clip_dir: Path) -> None:
    task = _task(clip_dir).eval()
    images = torch.randn(3, 3, 32, 32)
    out = task(images)
    expected = F.cosine_similarity(task.student(images).pooled, task.teacher(images))
    assert torch.allclose(out["cosine"], expected, atol=1e-6)
    assert torch.allclose(out["loss"], 1 - expected.mean(), atol=1e-6)


def test_the_teacher_is_neither_saved_nor_trained(clip_dir: Path) -> None:
    task = _task(clip_dir)
    assert all(name.startswith("student.") for name in task.state_dict())
    before = {name: value.clone() for name, value in task.teacher.state_dict().items()}
    task(torch.randn(2, 3, 32, 32))["loss"].backward()
    assert all(parameter.grad is None for parameter in task.teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in task.teacher.state_dict().items())


def test_training_aligns_and_keeps_the_rois_apart(clip_dir: Path) -> None:
    task = _task(clip_dir)
    images = torch.randn(8, 3, 32, 32)
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for _ in range(30):
        loss = task(images)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    rois = task.student(images).rois[-1]
    distances = torch.cdist(rois[0], rois[0]) + torch.eye(4)
    assert distances.min() > 0.01
