"""Inheritance: the right blocks are copied, the rest is new, and the report lists every weight."""

from pathlib import Path

import pytest
import torch

from sparse_vlm.bootstrap import Teacher, bootstrap_from
from sparse_vlm.bootstrap.inherit import DROPPED, FIXED, FROZEN, NEW, TUNED
from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.rois import lay_out_rois
from sparse_vlm.encoder.token_counts import TokenCounts
from sparse_vlm.errors import UserError


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


def test_the_report_lists_every_weight(teacher: Teacher) -> None:
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


def test_the_student_has_the_teachers_input_and_output_shapes(teacher: Teacher) -> None:
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


@pytest.mark.parametrize(
    ("given", "dropped", "tuned"),
    [
        ({}, 2, 2),
        ({"drop": 5}, 5, 1),
        ({"drop": 0}, 0, 2),
        ({"tune": 0}, 2, 0),
        ({"freeze": 0}, 2, 4),
        ({"freeze": 4}, 2, 0),
        ({"tune": 1, "freeze": 1}, 4, 1),
        ({"drop": 1, "freeze": 1}, 1, 4),
        ({"drop": 3, "tune": 3, "freeze": 0}, 3, 3),
    ],
)
def test_missing_numbers_of_blocks_are_derived(
    teacher: Teacher, given: dict[str, int], dropped: int, tuned: int
) -> None:
    student, report = bootstrap_from(teacher, tokens=4, stem_channels=8, **given)
    trainable = [next(block.parameters()).requires_grad for block in student.cortex.trunk.blocks]
    assert trainable == [True] * tuned + [False] * (6 - dropped - tuned)
    left_out = {
        fate.teacher.split(".")[1] for fate in report.fates if fate.fate == DROPPED and "blocks" in fate.teacher
    }
    assert left_out == set(map(str, range(dropped)))


@pytest.mark.parametrize(
    ("drop", "tune", "freeze"), [(6, 0, None), (-1, 2, None), (3, 4, None), (2, 2, 1), (None, None, 5), (2, 5, -1)]
)
def test_impossible_numbers_of_blocks(teacher: Teacher, drop: int | None, tune: int | None, freeze: int | None) -> None:
    with pytest.raises(UserError, match=r"Cannot drop -?\d and tune -?\d of the 6 blocks of clip\d and freeze -?\d:"):
        bootstrap_from(teacher, drop=drop, tune=tune, freeze=freeze)


def test_impossible_focus_width(teacher: Teacher) -> None:
    with pytest.raises(UserError, match="multiple of 64"):
        bootstrap_from(teacher, focus_width=96)


def test_from_scratch_copies_nothing(teacher: Teacher) -> None:
    student, report = bootstrap_from(teacher, tokens=5, stem_channels=8, inherit=False)
    assert {fate.fate for fate in report.fates} == {NEW, DROPPED}
    assert {fate.teacher for fate in report.fates if fate.teacher} == set(teacher.trunk.state_dict())
    assert all(parameter.requires_grad for parameter in student.parameters())
    inherited = teacher.trunk.blocks[2].attn.qkv.weight
    assert not torch.equal(student.cortex.trunk.blocks[0].attn.qkv.weight, inherited)


def test_given_initial_rois(teacher: Teacher) -> None:
    rois = torch.rand(5, 4)
    student, _ = bootstrap_from(teacher, tokens=5, stem_channels=8, initial_rois=rois)
    assert torch.equal(student.focus.initial_rois.weight, rois)
    with pytest.raises(UserError, match=r"must have the shape \[4, 4\] .*, got \[5, 4\]"):
        bootstrap_from(teacher, tokens=4, stem_channels=8, initial_rois=rois)


def test_an_elastic_student_starts_with_layouts(teacher: Teacher) -> None:
    student, report = bootstrap_from(teacher, TokenCounts.parse("4-16"), default_tokens=9, stem_channels=8)
    assert (student.config.focus.tokens, student.config.trained_tokens) == (9, "4-16")
    assert torch.equal(student.focus.initial_rois.weight, lay_out_rois(9))
    assert not student.focus.initial_rois.weight.requires_grad
    assert [fate.student for fate in report.fates if fate.fate == FIXED] == ["focus.initial_rois.weight"]
    assert bootstrap_from(teacher, TokenCounts.parse("4,16"))[0].config.focus.tokens == 16


def test_impossible_elastic_students(teacher: Teacher) -> None:
    counts = TokenCounts.parse("4-16")
    with pytest.raises(UserError, match="The default of 25 tokens is not among the trained counts, 4-16"):
        bootstrap_from(teacher, counts, default_tokens=25)
    with pytest.raises(UserError, match="starts with their layouts: leave out initial_rois"):
        bootstrap_from(teacher, counts, initial_rois=lay_out_rois(16))
