"""A byte-level BPE tokenizer with the most frequent tokens of another."""

import json
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase


def shorten(tokenizer: PreTrainedTokenizerBase, size: int) -> PreTrainedTokenizerBase:
    """Return `tokenizer` with its first `size` tokens: special tokens, bytes and the earliest merges."""
    fast: Any = tokenizer
    state = json.loads(fast.backend_tokenizer.to_str())
    model = state["model"]
    model["vocab"] = {token: number for token, number in model["vocab"].items() if number < size}
    model["merges"] = [pair for pair in model["merges"] if {*pair, "".join(pair)} <= model["vocab"].keys()]
    return type(tokenizer)(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        chat_template=fast.chat_template,
        model_max_length=fast.model_max_length,
        **fast.special_tokens_map,
    )
