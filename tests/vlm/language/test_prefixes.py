"""Rows that continue shared prefixes: the same keys and values as with a copy of the prefix for every row."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
)

from sparse_vlm.vlm.language.prefixes import continue_prefixes

PREFIX = 7
ROWS = torch.tensor([2, 0, 2, 1])


def states(rows: int, tokens: int) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 2, tokens, 4), torch.randn(rows, 2, tokens, 4)


def cache_of(layer: Any) -> Cache:
    """A cache with this layer, which holds three prefixes."""
    torch.manual_seed(0)
    layer.update(*states(3, PREFIX))
    return Cache([layer])


def copied(prefixes: Cache, rows: Tensor) -> Cache:
    cache = copy.deepcopy(prefixes)
    cache.batch_select_indices(rows)
    return cache


def windowed(size: int) -> DynamicSlidingWindowLayer:
    return DynamicSlidingWindowLayer(sliding_window=size)


@pytest.mark.parametrize("window", [None, 2, 5, PREFIX, PREFIX + 1, PREFIX + 2, 12, 100])
def test_continued_prefixes_equal_copies(window: int | None) -> None:
    prefixes = cache_of(DynamicLayer() if window is None else windowed(window))
    before = copy.deepcopy(prefixes.layers[0].__dict__)
    shared, copies = continue_prefixes(prefixes, ROWS), copied(prefixes, ROWS)

    def step(rows: int, tokens: int) -> None:
        new = states(rows, tokens)
        assert shared.get_seq_length() == copies.get_seq_length()
        assert shared.get_mask_sizes(tokens, 0) == copies.get_mask_sizes(tokens, 0)
        for found, expected in zip(shared.update(*new, 0), copies.update(*new, 0), strict=True):
            assert torch.equal(found, expected)

    step(4, 3)
    step(4, 1)
    for cache in (shared, copies):
        cache.reorder_cache(torch.tensor([1, 1, 3, 2]))
    step(4, 1)
    for cache in (shared, copies):
        cache.batch_select_indices(torch.tensor([3, 0]))
    step(2, 1)
    for cache in (shared, copies):
        cache.batch_repeat_interleave(3)
    for _ in range(6):
        step(6, 1)
    assert shared.is_sliding == copies.is_sliding == [window is not None]
    after = prefixes.layers[0].__dict__
    assert torch.equal(after["keys"], before["keys"])
    assert torch.equal(after["values"], before["values"])
    assert after.get("cumulative_length") == before.get("cumulative_length")


@pytest.mark.parametrize("layer", [DynamicLayer(), windowed(100)])
def test_only_the_rows_own_tokens_are_held(layer: DynamicLayer) -> None:
    """Of 1,000 rows, with 7 tokens of prefix and 2 of their own."""
    prefixes = cache_of(layer)
    batch: Any = continue_prefixes(prefixes, torch.arange(1000) % 3).layers[0]
    batch.update(*states(1000, 2))
    assert batch.prefix_keys.data_ptr() == prefixes.layers[0].keys.data_ptr()
    assert batch.prefix_values.data_ptr() == prefixes.layers[0].values.data_ptr()
    for own in (batch.keys, batch.values):
        assert own.untyped_storage().nbytes() == 1000 * 2 * 2 * 4 * own.itemsize


def test_other_layers_are_copied() -> None:
    """A layer with a recurrent state, and one that holds nothing."""
    prefixes = cache_of(LinearAttentionAndFullAttentionLayer())
    batch: Any = continue_prefixes(prefixes, ROWS).layers[0]
    assert torch.equal(batch.keys, prefixes.layers[0].keys[ROWS])
    empty = continue_prefixes(DynamicCache(), ROWS)
    assert empty.get_seq_length() == 0
    new = states(4, 2)
    assert torch.equal(empty.update(*new, 0)[0], new[0])
