"""Every family of teachers is opened and inherited exactly, and its students train at any input size."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from sparse_vlm.bootstrap import Teacher, bootstrap_from, open_teacher
from sparse_vlm.bootstrap.inherit import DROPPED, FROZEN, NEW, TUNED
from sparse_vlm.encoder import SparseFormer
from tests.bootstrap.teachers.families import FAMILIES, write_family


class Opened(NamedTuple):
    """A teacher, and the output of its own library for two images of its own size."""

    teacher: Teacher
    library: Callable[[Tensor], Tensor]
    images: Tensor


@pytest.fixture(scope="module", params=FAMILIES)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    directory = tmp_path_factory.mktemp("family") / "teacher"
    library = write_family(request.param, directory)
    teacher = open_teacher(str(directory))
    side = teacher.preprocessing.crop
    return Opened(teacher, library, torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1)))


@torch.no_grad()
def test_a_teacher_equals_its_library(opened: Opened) -> None:
    expected = opened.library(opened.images)
    torch.testing.assert_close(opened.teacher(opened.images), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected[0], expected[1], rtol=1e-2)


@torch.no_grad()
def test_tokens_give_the_final_representation(opened: Opened) -> None:
    teacher, trunk = opened.teacher, opened.teacher.trunk
    tokens = teacher.tokens(opened.images)
    rows, columns = teacher.grid
    assert tokens.shape == (2, trunk.num_prefix_tokens + rows * columns, teacher.cortex.width)
    torch.testing.assert_close(trunk.forward_head(trunk.norm(tokens)), teacher(opened.images))


@torch.no_grad()
def test_without_dropping_blocks_the_cortex_equals_the_teacher(opened: Opened, tmp_path: Path) -> None:
    """Given the input of the teacher's first block. So does the saved student, built from its config."""
    teacher, trunk = opened.teacher, opened.teacher.trunk
    entering: list[Tensor] = []
    with trunk.blocks[0].register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0])):
        expected = teacher(opened.images)
    student, _ = bootstrap_from(teacher, tokens=4, stem_channels=8, drop=0, tune=0)
    student.save_pretrained(tmp_path / "student")
    for inheritor in (student.eval(), SparseFormer.from_pretrained(tmp_path / "student")):
        cortex, prefix = inheritor.cortex, trunk.num_prefix_tokens
        if cortex.cls_embedding is not None:
            cortex.cls_embedding.copy_(entering[0][0, :1])
        if cortex.register_embeddings is not None:
            cortex.register_embeddings.copy_(entering[0][0, prefix - cortex.num_register_tokens : prefix])
        states = cortex(entering[0][:, prefix:])
        assert torch.equal(states[0], entering[0])
        assert torch.equal(cortex.pool(states[-1]), expected)


def test_the_report_lists_every_weight(opened: Opened) -> None:
    teacher = opened.teacher
    student, report = bootstrap_from(teacher, tokens=4, stem_channels=8, drop=1, tune=1)
    fates = report.fates
    assert {fate.teacher for fate in fates if fate.teacher} == set(teacher.trunk.state_dict())
    assert sorted(fate.student for fate in fates if fate.student) == sorted(student.state_dict())
    assert sum(fate.numbers for fate in fates if fate.student) == student.num_parameters
    old, new = teacher.trunk.state_dict(), student.state_dict()
    for fate in fates:
        if fate.fate in (FROZEN, TUNED):
            assert torch.equal(new[fate.student], old[fate.teacher])
        if fate.fate == DROPPED:
            start = ("patch_embed.", "pos_embed", "cls_token", "reg_token", "norm_pre.", "blocks.0.")
            assert fate.teacher.startswith(start)
    trained = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    assert {fate.student for fate in fates if fate.fate in (NEW, TUNED)} == trained
    last = teacher.cortex.depth - 2
    frozen = ("norm.", "fc_norm.", "attn_pool.", "head.", *(f"blocks.{index}." for index in range(1, last + 1)))
    for name, parameter in student.cortex.trunk.named_parameters():
        assert parameter.requires_grad == (not name.startswith(frozen)), name


def test_a_student_trains_on_images_of_any_aspect_ratio(opened: Opened) -> None:
    student, _ = bootstrap_from(opened.teacher, tokens=5, stem_channels=8, repeats=2)
    images = torch.randn(1, 3, 40, 72)
    out = student(images)
    assert out.pooled.shape == (1, opened.teacher(opened.images).shape[1])
    assert out.tokens.shape[1] == opened.teacher.trunk.num_prefix_tokens + 5
    out.pooled.square().mean().backward()
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        else:
            assert parameter.grad is None, name
    registers = student.cortex.register_embeddings
    assert registers is None or registers.grad is None or registers.grad.abs().max() > 0
