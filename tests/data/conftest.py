"""A chat format on SmolLM2's own tokenizer, for the data tests."""

import copy

import pytest
from transformers import PreTrainedTokenizerBase

from sparse_vlm.data.conversations import ChatFormat


@pytest.fixture(scope="session")
def tokenizer(smollm2_tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """SmolLM2's tokenizer with <image> as a special token, as `sparse-vlm build` makes it."""
    tokenizer = copy.deepcopy(smollm2_tokenizer)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    return tokenizer


@pytest.fixture(scope="session")
def chat(tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    """SmolLM2's own template, five tokens per image."""
    return ChatFormat(tokenizer, tokenizer.chat_template, tokenizer.convert_tokens_to_ids("<image>"), 5)
