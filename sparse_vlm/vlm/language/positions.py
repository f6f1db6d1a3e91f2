"""The number of positions of a language model."""

from transformers import PreTrainedConfig


def most_positions(config: PreTrainedConfig) -> int | None:
    """Return the number of positions in a language model's configuration, or None if it has no such field."""
    return getattr(config, "max_position_embeddings", getattr(config, "max_seq_len", None))
