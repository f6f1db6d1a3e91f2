"""Text that people type stays text: control tokens in it are escaped before a chat template puts its own around it.

`escape` breaks a control token with a character that no text holds. `encode` reads an escaped one as the letters that
it consists of, and everything else as the tokenizer does: to that end it makes the template's own tokens different
from what anybody types, in the text and in a copy of the tokenizer. Text without escapes takes the usual path.
"""

import json
import re
from collections.abc import Container, Iterable, Sequence
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from sparse_vlm.errors import UserError
from sparse_vlm.vlm.language.control_tokens import control_tokens

MARK = "\ufdd0"  # a Unicode noncharacter, meant for such internal use
HALF = re.compile("[\ud800-\udfff]")  # a surrogate, which Python keeps where another program cut a text


def escape(text: str, tokens: Iterable[str]) -> str:
    """The text with each of the control tokens broken, so that it is none; see `encode`."""
    return escape_parts([text], tokens)[0]


def escape_parts(parts: Sequence[str], tokens: Iterable[str]) -> list[str]:
    """Texts that follow each other likewise: a control token may begin in one and end in another.

    Raises:
        UserError: a text holds half of a character, as broken JSON and terminals bring it, which has no UTF-8.
    """
    parts = [part.replace(MARK, "") for part in parts]
    if half := HALF.search("".join(parts)):
        raise UserError(f"The text holds {half[0]!a}, half of a character of UTF-16, which says nothing. Remove it.")
    starts = {match.start() + 1 for match in _any_of(tuple(tokens)).finditer("".join(parts))}
    escaped, offset = [], 0
    for part in parts:
        inside = (MARK * (offset + index in starts) + letter for index, letter in enumerate(part))
        escaped.append("".join(inside) if starts else part)
        offset += len(part)
    return escaped


def is_escaped(text: str) -> bool:
    """Whether `escape` has changed the text."""
    return MARK in text


def encode(tokenizer: PreTrainedTokenizerBase, text: str, *, add_special_tokens: bool = False) -> list[int]:
    """Token ids of a text, escaped control tokens as the letters that they consist of.

    Raises:
        UserError: something is escaped, and the tokenizer has no way to write it as text.
    """
    if not is_escaped(text):
        return tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
    tokens = control_tokens(tokenizer)
    escaped = _any_of(tuple(token[0] + MARK + token[1:] for token in tokens))
    parts = escaped.split(text)  # text, escaped, text, …
    plain = _any_of(tuple(tokens))
    literal = "".join(
        part.replace(MARK, "") if index % 2 else plain.sub(lambda token: MARK + token[0], part.replace(MARK, ""))
        for index, part in enumerate(parts)
    )
    encoding = _renamed(tokenizer, len(tokenizer)).encode(literal, add_special_tokens=add_special_tokens)
    written = [token for token, added in zip(encoding.ids, encoding.special_tokens_mask, strict=True) if not added]
    expected = [tokens[token] for part in parts[::2] for token in plain.findall(part)]
    if [token for token in written if token in tokens.values()] != expected:
        raise UserError(f"The text holds {parts[1].replace(MARK, '')}, which this tokenizer cannot write as text.")
    return encoding.ids


@lru_cache(maxsize=64)
def _any_of(tokens: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(f"({'|'.join(map(re.escape, tokens)) or '(?!)'})")


@lru_cache(maxsize=4)
def _renamed(tokenizer: Any, size: int) -> Tokenizer:
    """A copy of a fast tokenizer whose control tokens begin with MARK; the same ids. `size` tells tokenizers apart that
    have got new tokens meanwhile."""
    if not tokenizer.is_fast:
        raise UserError("The text holds a control token, and only fast tokenizers can write one as text. Remove it.")
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
    """A tokenizer as a processor calls it, for a batch of texts of which one is escaped.

    Args:
        tokenizer: a fast one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self.init_kwargs = tokenizer, tokenizer.init_kwargs

    def __call__(
        self,
        text: Sequence[str],
        add_special_tokens: bool = True,
        padding: Any = False,
        max_length: int | None = None,
        return_tensors: Any = None,
        return_attention_mask: bool | None = None,
        **others: Any,
    ) -> Any:
        """Token ids and attention mask, padded as the tokenizer pads.

        Raises:
            UserError: another option of tokenizers is asked for.
        """
        if asked := [name for name, value in others.items() if value]:
            raise UserError(f"Text that holds control tokens is tokenised without {', '.join(asked)}. Leave it out.")
        ids = [encode(self.tokenizer, one, add_special_tokens=add_special_tokens) for one in text]
        return self.tokenizer.pad(
            {"input_ids": ids},
            padding=padding,
            max_length=max_length,
            return_tensors=return_tensors,
            return_attention_mask=return_attention_mask,
        )
