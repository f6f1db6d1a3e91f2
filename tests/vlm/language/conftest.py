"""A tokenizer for the chat templates of known_templates.py."""

import copy
from typing import Any

import pytest
from tokenizers import Regex, pre_tokenizers
from transformers import PreTrainedTokenizerBase

from sparse_vlm.vlm.language.control_tokens import add_image_token
from tests.vlm.language.known_templates import NEW_TOKENS, QWEN_WORDS


@pytest.fixture(scope="session")
def tokenizer(smollm2_tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """SmolLM2's tokenizer with the templates' control tokens, and with the word boundaries of Qwen and Llama 3."""
    tokenizer: Any = copy.deepcopy(smollm2_tokenizer)
    tokenizer.add_tokens(NEW_TOKENS, special_tokens=True)
    words = pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    add_image_token(tokenizer)
    return tokenizer
