"""Key-value caches of many rows that continue few prefixes, without a copy of its prefix for every row.

`continue_prefixes` makes the cache of a batch: for each row, the index of its prefix and the keys and values of the
tokens after it. A layer's attention sees prefix and continuation joined, in memory that is free again once the layer
has run. So a batch needs this memory for one layer at a time, not for all.
"""

import copy
from inspect import signature
from typing import Any, Self

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)
from transformers.models.llava.modeling_llava import LlavaForConditionalGeneration

# The name of the cache in the arguments and outputs of transformers' models.
CACHE = next(
    name for name in ("cache", "past_key_values") if name in signature(LlavaForConditionalGeneration.forward).parameters
)
# MPT counts distances by position in the row, and fails after cached keys and values of several tokens.
NOT_CONTINUED = ("mpt",)


def can_continue(config: Any) -> bool:
    """Return whether a model can read several tokens after a cached prefix, with padding between them.

    Recurrent layers (LFM2, Qwen3-Next) cannot: their state reads one token at a time, and padding changes it.
    """
    recurrent = any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in DynamicCache(config=config).layers)
    return not recurrent and config.get_text_config().model_type not in NOT_CONTINUED


class _Continuation(CacheLayerMixin):
    """`keys` and `values` are float[R, heads, n, D], those of the R rows' own tokens.

    Attributes:
        prefix_keys, prefix_values: float[I, heads, P, D].
        rows: int64[R], the index of each row's prefix.
    """

    is_croppable = False  # the tokens of a prefix cannot be taken back

    keys: Any  # transformers allows None, before a layer's first tokens
    values: Any
    prefix_keys: Tensor
    prefix_values: Tensor
    rows: Tensor

    @classmethod
    def of(cls, layer: DynamicLayer, rows: Tensor) -> Self:
        """Continue the prefixes in `layer`, which is unchanged."""
        made: Any = cls.__new__(cls)
        made.__dict__ = layer.__dict__.copy()
        made.prefix_keys, made.prefix_values, made.rows = layer.keys, layer.values, rows.to(layer.device)
        for name, past in (("keys", made.prefix_keys), ("values", made.prefix_values)):
            setattr(made, name, past.new_empty(len(rows), past.shape[1], 0, past.shape[3]))
        return made

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values of new tokens; return those of all tokens, float[R, heads, P + n, D]."""
        self.keys = torch.cat([self.keys, key_states], dim=-2)
        self.values = torch.cat([self.values, value_states], dim=-2)
        return _joined(self.prefix_keys, self.rows, self.keys), _joined(self.prefix_values, self.rows, self.values)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows at `indices`, in this order."""
        indices = indices.to(self.rows.device)
        self.rows, self.keys, self.values = (
            each.index_select(0, indices) for each in (self.rows, self.keys, self.values)
        )

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let every row continue another one, in beam search."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        self.batch_select_indices(torch.arange(len(self.rows)).repeat_interleave(repeats))


class FullContinuation(_Continuation, DynamicLayer):
    """A layer whose attention sees all tokens."""

    def get_seq_length(self) -> int:
        """Number of tokens of a row."""
        return self.prefix_keys.shape[-2] + self.keys.shape[-2]


class SlidingContinuation(_Continuation, DynamicSlidingWindowLayer):
    """A layer whose attention sees a window of tokens. The others are dropped, those of the prefix first."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        """See `_Continuation.update`; at most the last window - 1 tokens stay."""
        self.cumulative_length += key_states.shape[-2]
        joined = super().update(key_states, value_states)
        surplus = max(joined[0].shape[-2] - self.sliding_window + 1, 0)
        of_prefix = min(surplus, self.prefix_keys.shape[-2])
        self.prefix_keys, self.prefix_values = self.prefix_keys[:, :, of_prefix:], self.prefix_values[:, :, of_prefix:]
        self.keys, self.values = (own[:, :, surplus - of_prefix :] for own in (self.keys, self.values))
        return joined


# Exact classes: a subclass may keep more than keys and values.
CONTINUATIONS: dict[type, type[FullContinuation] | type[SlidingContinuation]] = {
    DynamicLayer: FullContinuation,
    DynamicSlidingWindowLayer: SlidingContinuation,
}


def continue_prefixes(prefixes: Cache, rows: Tensor) -> Cache:
    """Make the cache of rows that continue prefixes.

    Args:
        prefixes: keys and values of the prefixes; unchanged.
        rows: int64[R], the index of each row's prefix.

    Returns:
        the cache for transformers' `generate`. Layers of other kinds than transformers' DynamicLayer and
        DynamicSlidingWindowLayer hold a copy of the prefix for each row.
    """
    cache = copy.copy(prefixes)
    cache.layers = [_continued(layer, rows) for layer in prefixes.layers]
    return cache


def _continued(layer: Any, rows: Tensor) -> Any:
    if type(layer) in CONTINUATIONS and layer.is_initialized:
        return CONTINUATIONS[type(layer)].of(layer, rows)
    copied = copy.copy(layer)
    copied.batch_select_indices(rows)
    return copied


def _joined(prefix: Tensor, rows: Tensor, own: Tensor) -> Tensor:
    """Join each row's prefix with its own keys or values."""
    length = prefix.shape[-2]
    joined = own.new_empty(*own.shape[:2], length + own.shape[-2], own.shape[-1])
    torch.index_select(prefix, 0, rows, out=joined[:, :, :length])
    joined[:, :, length:] = own
    return joined
