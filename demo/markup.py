"""Text for the chat, which renders Markdown: what visitors typed shows as typed, answers neither hide nor fetch."""

import html
import re

CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]+`)", re.DOTALL)
INLINE_MARKS = re.compile(r"[\\`*_\[\]<>&|~$#]")
LINE_MARKS = re.compile(r"^([ \t]*)([-+=])", re.MULTILINE)
NUMBERS = re.compile(r"^([ \t]*\d+)([.)])", re.MULTILINE)
SPACES = re.compile(r"^[ \t]+| (?= )|\t", re.MULTILINE)  # what HTML would swallow
REFERENCE = re.compile(r"^([ \t]*)\[([^\]\n]*\]:)", re.MULTILINE)


def as_typed(text: str) -> str:
    """Return Markdown that renders as `text` itself: no markup, its line breaks and spaces kept."""
    text = INLINE_MARKS.sub(r"\\\g<0>", text)
    text = NUMBERS.sub(r"\1\\\2", LINE_MARKS.sub(r"\1\\\2", text))
    return SPACES.sub(lambda spaces: "\N{NO-BREAK SPACE}" * len(spaces[0]), text)


def as_answer(text: str) -> str:
    """Return an answer's Markdown with its HTML, images and link definitions as plain text; code stays as it is.

    HTML would be removed by the page's sanitiser, definitions show nothing, and images would be fetched from wherever
    the model says.
    """
    parts = CODE.split(text)
    return "".join(part if index % 2 else _without_embeds(part) for index, part in enumerate(parts))


def _without_embeds(text: str) -> str:
    text = html.escape(text, quote=False).replace("![", r"!\[")
    return REFERENCE.sub(r"\1\\[\2", text)
