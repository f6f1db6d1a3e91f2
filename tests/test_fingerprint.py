"""A fingerprint changes with every weight, and with nothing else."""

import copy

import torch

from sparse_vlm.fingerprint import fingerprint


def test_the_fingerprint_follows_every_weight() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    before = fingerprint(model)
    assert before == fingerprint(model)
    for weight in model.parameters():
        with torch.no_grad():
            weight.add_(1e-3)
        assert fingerprint(model) != before
        before = fingerprint(model)


def test_every_single_value_counts() -> None:
    model = torch.nn.Embedding(1000, 7)
    other = copy.deepcopy(model)
    assert fingerprint(other) == fingerprint(model)
    with torch.no_grad():
        other.weight[501, 3] += 1
    assert fingerprint(other) != fingerprint(model)


def test_buffers_and_dtypes_count() -> None:
    model = torch.nn.BatchNorm1d(3)
    before = fingerprint(model)
    model.running_mean += 1  # type: ignore[operator]
    assert fingerprint(model) != before
    assert fingerprint(torch.nn.LayerNorm(2)) != fingerprint(torch.nn.LayerNorm(2).bfloat16())
