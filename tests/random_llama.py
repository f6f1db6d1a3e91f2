"""A tiny Llama with random weights."""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def random_llama(vocab_size: int, **changes: Any) -> LlamaForCausalLM:
    """Create a Llama with two layers of width 48 and fixed random weights. `changes` override its configuration."""
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **(sizes | heads | changes)))
