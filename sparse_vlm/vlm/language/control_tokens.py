"""Control tokens: a tokenizer's special tokens, and the image placeholder among them."""

from typing import Any

from transformers import PreTrainedTokenizerBase

IMAGE_TOKEN = "<image>"
# Not in the vocabulary: their places in a prompt are taken by image tokens.
REGION_TOKEN = "<region>"
VIDEO_TOKEN = "<video>"


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Text -> id of the special tokens. A token comes before those that its text contains."""
    texts = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    texts |= set(tokenizer.all_special_tokens)
    ordered = sorted(texts - {""}, key=lambda text: (-len(text), text))
    ids: Any = tokenizer.convert_tokens_to_ids(ordered)  # a list, for a list of texts
    return dict(zip(ordered, ids, strict=True))


def add_image_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Make `<image>` one token of `tokenizer`, in place, and return its id. A second call changes nothing."""
    if IMAGE_TOKEN not in tokenizer.get_added_vocab():
        tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    return tokenizer.get_added_vocab()[IMAGE_TOKEN]
