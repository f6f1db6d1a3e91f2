"""Classifiers on known representations."""

import math

import pytest
import torch

from eval.encoders.probing.classifiers import STRENGTHS, hold_out, linear_probe, vote
from sparse_vlm.errors import UserError


def test_near_images_weigh_more_than_several_far_ones() -> None:
    def at(*degrees: float) -> torch.Tensor:
        return torch.tensor([[math.cos(math.radians(each)), math.sin(math.radians(each))] for each in degrees])

    train, labels = at(10, 60, 70, 180), torch.tensor([1, 0, 0, 2])
    assert vote(3 * at(0, 65), 2 * train, labels, neighbours=3).tolist() == [1, 0]
    assert vote(at(0), train, labels, neighbours=3, temperature=100.0).tolist() == [0]  # a plain majority
    assert vote(at(0, 180), train, labels, neighbours=1).tolist() == [1, 2]


def test_many_images_are_classified_in_parts() -> None:
    generator = torch.Generator().manual_seed(0)
    train, labels = torch.randn(30, 4, generator=generator), torch.arange(30) % 3
    test = torch.randn(1030, 4, generator=generator)
    alone = torch.cat([vote(each[None], train, labels, 5) for each in test[-10:]])
    assert torch.equal(vote(test, train, labels, 5)[-10:], alone)


def clusters(count: int, seed: int, noise: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    """Three separable classes on axes of very different scale, and a channel that never changes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    points = torch.eye(3)[labels] + noise * torch.randn(count, 3, generator=generator)
    return torch.cat([points * torch.tensor([1e-3, 1.0, 1e3]), torch.full((count, 1), 7.0)], dim=1), labels


def test_separable_classes_are_classified_without_error() -> None:
    """Whatever the scale of the channels, because they are standardised; a vote sees only the largest."""
    (train, labels), (test, truth) = clusters(60, 0), clusters(45, 1)
    assert torch.equal(linear_probe(test, train, labels).guesses, truth)
    assert not torch.equal(vote(test, train, labels, 5), truth)


def test_shuffled_labels_are_classified_at_chance() -> None:
    (train, labels), (test, truth) = clusters(300, 0, noise=2.0), clusters(600, 1, noise=2.0)
    shuffled = labels[torch.randperm(300, generator=torch.Generator().manual_seed(0))]
    accuracy = (linear_probe(test, train, shuffled).guesses == truth).float().mean().item()
    assert accuracy == pytest.approx(1 / 3, abs=0.06)
    assert (linear_probe(test, train, labels).guesses == truth).float().mean() > 0.45


def test_the_strength_is_chosen_on_training_images_alone() -> None:
    """Noise channels need a strong regularisation; the test images have no part in the choice."""
    generator = torch.Generator().manual_seed(0)
    (train, labels), (test, _) = clusters(60, 0, noise=1.0), clusters(45, 1)
    train, test = (torch.cat([each, torch.randn(len(each), 200, generator=generator)], 1) for each in (train, test))
    strength = linear_probe(test, train, labels).strength
    assert strength in STRENGTHS
    assert linear_probe(torch.zeros_like(test), train, labels).strength == strength
    held_out = hold_out(labels)
    scores = [
        (linear_probe(train[held_out], train[~held_out], labels[~held_out], [each]).guesses == labels[held_out]).sum()
        for each in STRENGTHS
    ]
    assert strength == STRENGTHS[int(torch.stack(scores).argmax())]


def test_one_in_five_images_of_each_class_is_held_out() -> None:
    labels = torch.tensor([2] * 11 + [0] * 5 + [7] * 2)
    held_out = hold_out(labels)
    assert [int(held_out[labels == label].sum()) for label in (2, 0, 7)] == [2, 1, 1]
    assert torch.equal(hold_out(labels), held_out)
    assert not torch.equal(hold_out(labels, seed=1), held_out)


def test_a_class_with_one_image_is_refused() -> None:
    with pytest.raises(UserError, match="at least two training images of each class"):
        hold_out(torch.tensor([0, 0, 1]))
