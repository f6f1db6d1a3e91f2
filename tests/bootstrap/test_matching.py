"""Matching gives the latent tokens that enter the inherited blocks the statistics of the teacher's tokens."""

from pathlib import Path

import pytest
import torch

from sparse_vlm.bootstrap import Teacher, bootstrap_from, match_tokens, open_teacher
from sparse_vlm.encoder import create_encoder
from sparse_vlm.errors import UserError
from tests.bootstrap.teachers.families import write_family


@pytest.mark.parametrize("family", ["dinov2, registers", "siglip 2, gelu tanh (timm)", "openai clip"])
@pytest.mark.parametrize("drop", [0, 1])
def test_every_channel_has_the_teachers_mean_and_deviation(family: str, drop: int, tmp_path: Path) -> None:
    write_family(family, tmp_path / "teacher")
    teacher = open_teacher(str(tmp_path / "teacher"))
    student, _ = bootstrap_from(teacher, tokens=9, stem_channels=8, repeats=2, drop=drop)
    size, prefix = teacher.preprocessing.crop, student.num_prefix_tokens
    images = torch.randn(4, 3, size, size)
    match = match_tokens(student, teacher, images)
    entering = student(images).hidden_states[0]
    entering_layer = drop - teacher.cortex.depth - 1
    with teacher.recorded([entering_layer]) as states:
        teacher(images)
    wanted = states[entering_layer]
    latent, patches = entering[:, prefix:].flatten(0, 1), wanted[:, prefix:].flatten(0, 1)
    torch.testing.assert_close(latent.mean(0), patches.mean(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(latent.std(0, correction=0), patches.std(0, correction=0), atol=1e-4, rtol=1e-3)
    for row in entering:
        torch.testing.assert_close(row[:prefix], wanted[:, :prefix].mean(0))
    assert match.after == pytest.approx(match.teacher, rel=1e-3) != match.before
    assert f"{match.after:.3g}" in str(match)


def test_the_input_of_a_block_is_the_output_of_the_previous_one(teacher: Teacher) -> None:
    images = torch.randn(2, 3, 32, 32)
    with teacher.recorded([-2, -1]) as states:
        teacher(images)
    before = dict(states)
    teacher(torch.randn(2, 3, 32, 32))  # no longer recorded
    assert states == before
    torch.testing.assert_close(teacher.trunk.blocks[-1](states[-2]), states[-1])
    torch.testing.assert_close(states[-1], teacher.tokens(images))


def test_tokens_differ_from_each_other_and_between_images(teacher: Teacher) -> None:
    student, _ = bootstrap_from(teacher, tokens=9, stem_channels=8)
    images = torch.randn(4, 3, 32, 32)
    match_tokens(student, teacher, images)
    latent = student(images).tokens[:, student.num_prefix_tokens :].flatten(0, 1)
    assert torch.pdist(latent).min() > 1e-3


def test_another_encoder_is_refused(teacher: Teacher) -> None:
    with pytest.raises(UserError, match="the student was not bootstrapped from"):
        match_tokens(create_encoder("sparseformer-v1-t"), teacher, torch.randn(2, 3, 32, 32))
