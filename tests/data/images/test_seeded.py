"""Reproducible seeds, and the log of bad images."""

import logging

import pytest
import torch
from PIL import Image
from torch import Tensor

from sparse_vlm.data.bad_items import NAMED
from sparse_vlm.data.images.seeded import BadImages, SeededImages, seed_of
from sparse_vlm.errors import UserError


def test_a_seed_depends_on_the_values_alone() -> None:
    assert seed_of(0, 1, "order") == 5305612505841276476
    assert len({seed_of(0, 1), seed_of(1, 0), seed_of(0, "1"), seed_of(0, 1, 0)}) == 4
    assert 0 <= seed_of(-1) < 2**63


def test_augmentation_does_not_change_torchs_generator() -> None:
    def draw(image: Image.Image) -> Tensor:
        return torch.rand(2)

    images, before = SeededImages(draw, 0, "error"), torch.random.get_rng_state()
    first = images.augmented(Image.new("RGB", (1, 1)), 4)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(images.augmented(Image.new("RGB", (1, 1)), 4), first)
    assert not torch.equal(images.augmented(Image.new("RGB", (1, 1)), 5), first)


def test_the_first_bad_images_are_named_then_powers_of_ten(caplog: pytest.LogCaptureFixture) -> None:
    bad = BadImages("skip")
    with caplog.at_level(logging.WARNING):
        for index in range(120):
            bad.handle(UserError(f"image {index}"))
    assert bad.count == 120
    assert len(caplog.records) == NAMED + 2
    assert "skipped 100 unreadable images; the last: image 99" in caplog.messages[-1]
