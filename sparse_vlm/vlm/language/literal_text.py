"""Literal text: control tokens that people type are escaped before a chat template adds its own.

`escape` breaks up each control token with a character that does not occur in text. `encode` tokenizes an escaped token
as its letters, and everything else as usual. For this it renames the template's own tokens, both in the text and in a
copy of the tokenizer, so that they differ from anything typed. Text without escapes is tokenized as usual.
"""

import json
import re
from collections.abc import Container, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from sparse_vlm.errors import UserError
from sparse_vlm.vlm.language.control_tokens import control_tokens

MARK = "\ufdd0"  # a Unicode noncharacter, reserved for internal use
HALF = re.compile("[\ud800-\udfff]")  # a surrogate, which remains where another program has cut a text


def escape(text: str, tokens: Iterable[str]) -> str:
    """Break up the control tokens `tokens` in a text, so that `encode` reads them as letters."""
    return escape_parts([text], tokens)[0]


def escape_parts(parts: Sequence[str], tokens: Iterable[str]) -> list[str]:
    """Escape consecutive texts, where a control token may begin in one and end in another.

    Raises:
        UserError: a text contains half of a character, e.g. from broken JSON or a terminal, which UTF-8 cannot encode.
    """
    parts = [part.replace(MARK, "") for part in parts]
    if half := HALF.search("".join(parts)):
        raise UserError(f"The text contains {half[0]!a}, half of a character in UTF-16. Remove it.")
    starts = {match.start() + 1 for match in _any_of(tuple(tokens)).finditer("".join(parts))}
    escaped, offset = [], 0
    for part in parts:
        inside = (MARK * (offset + index in starts) + letter for index, letter in enumerate(part))
        escaped.append("".join(inside) if starts else part)
        offset += len(part)
    return escaped


def is_escaped(text: str) -> bool:
    """Return whether `escape` has changed the text."""
    return MARK in text


def encode(tokenizer: PreTrainedTokenizerBase, text: str, *, add_special_tokens: bool = False) -> list[int]:
    """Tokenize a text, with escaped control tokens as their letters.

    Raises:
        UserError: the tokenizer cannot write an escaped token as letters.
    """
    if not is_escaped(text):
        return tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
    return encode_with_offsets(tokenizer, text, add_special_tokens=add_special_tokens).ids


class Encoded(NamedTuple):
    """A tokenized text: the id of each token, and the start and end of its letters in the text, escapes included."""

    ids: list[int]
    offsets: list[tuple[int, int]]


def encode_with_offsets(tokenizer: PreTrainedTokenizerBase, text: str, *, add_special_tokens: bool = False) -> Encoded:
    """Tokenize a text as `encode` does, and tell which letters each token stands for.

    Raises:
        UserError: as in `encode`.
    """
    if not is_escaped(text):
        found = tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True)
        return Encoded(found["input_ids"], found["offset_mapping"])
    tokens = control_tokens(tokenizer)
    escaped = _any_of(tuple(token[0] + MARK + token[1:] for token in tokens))
    parts = escaped.split(text)  # text, escaped, text, …
    plain = _any_of(tuple(tokens))
    literal, places = _literal(parts, plain)
    encoding = _renamed(tokenizer, len(tokenizer)).encode(literal, add_special_tokens=add_special_tokens)
    written = [token for token, added in zip(encoding.ids, encoding.special_tokens_mask, strict=True) if not added]
    expected = [tokens[token] for part in parts[::2] for token in plain.findall(part)]
    if [token for token in written if token in tokens.values()] != expected:
        raise UserError(f"The text contains {parts[1].replace(MARK, '')}, which this tokenizer cannot write as text.")
    offsets = [(places[start], places[end - 1] + 1) if start < end else (0, 0) for start, end in encoding.offsets]
    return Encoded(encoding.ids, offsets)


def _literal(parts: Sequence[str], plain: re.Pattern[str]) -> tuple[str, list[int]]:
    """Return the text for a renamed tokenizer, and where each of its letters stands in the joined parts."""
    letters: list[str] = []
    places: list[int] = []
    begin = 0
    for index, part in enumerate(parts):
        kept = [place for place, letter in enumerate(part) if letter != MARK]
        own = "".join(part[place] for place in kept)
        controls = set() if index % 2 else {match.start() for match in plain.finditer(own)}
        for position, place in enumerate(kept):
            written = MARK * (position in controls) + part[place]
            letters.append(written)
            places += [begin + place] * len(written)
        begin += len(part)
    return "".join(letters), places


@lru_cache(maxsize=64)
def _any_of(tokens: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(f"({'|'.join(map(re.escape, tokens)) or '(?!)'})")


@lru_cache(maxsize=4)
def _renamed(tokenizer: Any, size: int) -> Tokenizer:
    """Return a copy of a fast tokenizer in which control tokens begin with MARK; ids are the same.

    `size` is part of the cache's key, because a tokenizer may get new tokens.
    """
    if not tokenizer.is_fast:
        raise UserError("The text contains a control token, which only fast tokenizers can write as text. Remove it.")
    tokens = control_tokens(tokenizer)
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    for added in settings["added_tokens"]:
        added["content"] = _new_name(added["content"], tokens)
    model = settings["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {_new_name(token, tokens): index for token, index in model["vocab"].items()}
    else:
        model["vocab"] = [[_new_name(token, tokens), score] for token, score in model["vocab"]]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = _new_name(model["unk_token"], tokens)
    settings["truncation"] = settings["padding"] = None
    return Tokenizer.from_str(json.dumps(settings))


def _new_name(token: str, tokens: Container[str]) -> str:
    return MARK + token if token in tokens else token


class LiteralTokenizer:
    """Stands in for a processor's tokenizer where a batch contains escaped text.

    Args:
        tokenizer: a fast tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self.init_kwargs = tokenizer, tokenizer.init_kwargs

    def __call__(
        self,
        text: Sequence[str],
        add_special_tokens: bool = True,
        padding: Any = False,
        truncation: Any = False,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: Any = None,
        return_attention_mask: bool | None = None,
        return_offsets_mapping: bool = False,
        **others: Any,
    ) -> Any:
        """Return token ids, attention mask and offsets, as the tokenizer does. Its other options are errors."""
        unsupported = [name for name, value in others.items() if value]
        if truncation not in (False, "do_not_truncate") and add_special_tokens:
            unsupported.append("truncation and add_special_tokens together")
        if unsupported:
            raise UserError(
                f"Text with control tokens cannot be tokenized with {', '.join(unsupported)}. Leave it out."
            )
        rows = [encode_with_offsets(self.tokenizer, one, add_special_tokens=add_special_tokens) for one in text]
        if truncation not in (False, "do_not_truncate"):
            rows = [self._truncated(row, max_length or self.tokenizer.model_max_length) for row in rows]
        padded: Any = self.tokenizer.pad(
            {"input_ids": [row.ids for row in rows]},
            padding=padding,
            max_length=max_length if padding == "max_length" else None,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=padding_side,
            return_tensors=return_tensors,
            return_attention_mask=return_attention_mask,
        )
        if return_offsets_mapping:
            left = (padding_side or self.tokenizer.padding_side) == "left"
            padded["offset_mapping"] = [
                _padded(row.offsets, len(ids), left) for row, ids in zip(rows, padded["input_ids"], strict=True)
            ]
        return padded

    def _truncated(self, row: Encoded, tokens: int) -> Encoded:
        keep = (
            slice(tokens) if self.tokenizer.truncation_side == "right" else slice(max(0, len(row.ids) - tokens), None)
        )
        return Encoded(row.ids[keep], row.offsets[keep])


def _padded(offsets: list[tuple[int, int]], length: int, left: bool) -> list[tuple[int, int]]:
    padding = [(0, 0)] * (length - len(offsets))
    return padding + offsets if left else offsets + padding
