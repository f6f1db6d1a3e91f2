"""Inheritance: the right blocks, every weight accounted for, the rest new."""

from pathlib import Path

import pytest
import torch

from sparse_vlm.bootstrap import Teacher, bootstrap_from, open_teacher
from sparse_vlm.bootstrap.inherit import DROPPED, FROZEN, NEW, TUNED
from sparse_vlm.encoder import SparseFormer
from sparse_vlm.errors import UserError


@pytest.fixture
def teacher(clip_dir: Path) -> Teacher:
    return open_teacher(str(clip_dir))


def test_thirds_are_dropped_tuned_and_frozen(teacher: Teacher) -> None:
    student, _ = bootstrap_from(teacher, tokens=9, stem_channels=8)
    for index, block in enumerate(student.cortex.trunk.blocks):
        source = teacher.trunk.blocks[index + 2].state_dict()
        assert all(torch.equal(value, source[name]) for name, value in block.state_dict().items())
        assert all(parameter.requires_grad == (index < 2) for parameter in block.parameters())
    frozen = [*student.cortex.trunk.norm.parameters(), *student.cortex.trunk.head.parameters()]
    assert not any(parameter.requires_grad for parameter in frozen)
    assert torch.equal(student.cortex.trunk.head.weight, teacher.trunk.head.weight)
    assert all(p.requires_grad for part in (student.stem, student.focus) for p in part.parameters())


def test_the_report_accounts_for_every_weight(teacher: Teacher) -> None:
    student, report = bootstrap_from(teacher, tokens=9, stem_channels=8, drop=1, tune=3)
    of_teacher = [fate for fate in report.fates if fate.teacher]
    of_student = [fate for fate in report.fates if fate.student]
    assert {fate.teacher for fate in of_teacher} == set(teacher.trunk.state_dict())
    assert {fate.student for fate in of_student} == set(student.state_dict())
    assert len(of_student) == len(student.state_dict())
    assert sum(fate.numbers for fate in of_student) == student.num_parameters
    trained = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    assert {fate.student for fate in of_student if fate.fate in (NEW, TUNED)} == trained
    assert {fate.fate for fate in report.fates} == {NEW, TUNED, FROZEN, DROPPED}
    for line in ("cortex.trunk.blocks.4", "teacher.patch_embed.proj", "stem.conv"):
        assert line in str(report)


def test_the_student_takes_the_teachers_images_and_gives_its_embedding(teacher: Teacher) -> None:
    student, _ = bootstrap_from(teacher, tokens=5, stem_channels=8)
    assert student.config.preprocessing == teacher.preprocessing
    assert student(torch.randn(2, 3, 32, 32)).pooled.shape == teacher(torch.randn(2, 3, 32, 32)).shape


def test_a_student_opens_without_its_teacher(teacher: Teacher, tmp_path: Path) -> None:
    student, _ = bootstrap_from(teacher, tokens=5, stem_channels=8)
    student.eval().save_pretrained(tmp_path / "student")
    again = SparseFormer.from_pretrained(tmp_path / "student")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(images).pooled, student(images).pooled)
    assert again.config.teacher == teacher.name


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_dinov2"])
def test_timm_families(name: str) -> None:
    teacher = open_teacher(f"timm:{name}", pretrained=False, image_size=28 if "14" in name else 32)
    student, _ = bootstrap_from(teacher, tokens=4, stem_channels=8)
    images = torch.randn(1, 3, teacher.preprocessing.crop, teacher.preprocessing.crop)
    assert student(images).pooled.shape == teacher(images).shape
    last, source = student.cortex.trunk.blocks[-1], teacher.trunk.blocks[-1]
    tokens = torch.randn(1, 5, student.config.cortex.width)
    assert torch.equal(last.eval()(tokens), source(tokens))


@pytest.mark.parametrize(("drop", "tune"), [(6, 0), (-1, 2), (3, 4)])
def test_impossible_numbers_of_blocks(teacher: Teacher, drop: int, tune: int) -> None:
    with pytest.raises(UserError, match=f"Cannot drop {drop} and tune {tune} of the 6 blocks"):
        bootstrap_from(teacher, drop=drop, tune=tune)


def test_impossible_focus_width(teacher: Teacher) -> None:
    with pytest.raises(UserError, match="multiple of 64"):
        bootstrap_from(teacher, focus_width=96)
