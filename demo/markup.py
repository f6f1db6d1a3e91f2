"""Text for the chat, which renders Markdown: questions appear as typed; answers hide nothing and fetch nothing."""

import html
import re

CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]+`)", re.DOTALL)
INLINE_MARKS = re.compile(r"[\\`*_\[\]<>&|~$#]")
LINE_MARKS = re.compile(r"^([ \t]*)([-+=])", re.MULTILINE)
NUMBERS = re.compile(r"^([ \t]*\d+)([.)])", re.MULTILINE)
SPACES = re.compile(r"^[ \t]+| (?= )|\t", re.MULTILINE)  # HTML collapses these
REFERENCE = re.compile(r"^([ \t]*)\[([^\]\n]*\]:)", re.MULTILINE)


def as_typed(text: str) -> str:
    """Return Markdown that renders as `text` itself, without markup; line breaks and spaces are kept."""
    text = INLINE_MARKS.sub(r"\\\g<0>", text)
    text = NUMBERS.sub(r"\1\\\2", LINE_MARKS.sub(r"\1\\\2", text))
    return SPACES.sub(lambda spaces: "\N{NO-BREAK SPACE}" * len(spaces[0]), text)


def as_answer(text: str) -> str:
    """Return an answer's Markdown with its HTML, images and link definitions as plain text; code stays as it is.

    The page's sanitiser would remove HTML, link definitions are invisible, and images would be fetched from any address
    that the model names.
    """
    parts = CODE.split(text)
    return "".join(part if index % 2 else _without_embeds(part) for index, part in enumerate(parts))


def _without_embeds(text: str) -> str:
    text = html.escape(text, quote=False).replace("![", r"!\[")
    return REFERENCE.sub(r"\1\\[\2", text)
