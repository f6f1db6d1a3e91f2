"""Grades and letters in a judge's reply, however it puts them: "0.5", "**0.5**", "Correctness: 0.5", "Letter: B"."""

import re

NUMBER = r"(?<![\w.,/-])(\d+(?:\.\d+)?|\.\d+)(?:\s*(?:/|out of)\s*{scale}(?:\.0)?)?(?![\w%/-]|[.,]\d)"
LABEL = r"(?:correctness|score|grade|rating)\b[^\d\n]{{0,20}}?(?:[:=]|\bis|\bof)\s*"
LIST_ITEM = re.compile(r"\d+[.)]\s+\S")
LETTER = re.compile(r"(?:(?:[Tt]he )?(?:[Ll]etter|[Aa]nswer|[Oo]ption)(?:\s*[:=]|\s+is)?\s*)?\(?([A-Z])[).]*\s*")
ROLE = re.compile(r"^(?:assistant|ai)\s*\d\s*:", re.IGNORECASE | re.MULTILINE)


def read_grade(reply: str) -> float | None:
    """The one grade from 0 to 1 in a reply; None: there is none, or it cannot be told which number is the grade.

    It is the number that the reply begins with, or one behind a word like "Correctness:", or the only number of the
    reply.
    """
    text = _plain(reply)
    number = NUMBER.format(scale="1")
    first = None if LIST_ITEM.match(text) else re.match(number, text)
    if first is not None:
        found = {float(first[1])}
    else:
        labelled = re.findall(LABEL.format() + number, text, re.IGNORECASE)
        found = {float(value) for value in labelled or re.findall(number, text)}
    grade = found.pop() if len(found) == 1 else -1.0
    return grade if 0 <= grade <= 1 and not text.startswith("-") else None


def read_two_grades(reply: str) -> tuple[float, float] | None:
    """Two grades from the reply's first line, e.g. "8 6", "Scores: 8, 6", "8/10 6/10", or from a line for each
    assistant, e.g. "Assistant 1: 8"; None: there are not two."""
    text = _plain(reply)
    lines = [ROLE.sub("", line) for line in text.split("\n") if ROLE.match(line)] or text.split("\n")[:1]
    words = " ".join(lines).replace(",", " ")
    words = re.sub(r"^[^\d\n]*:", " ", words)
    found = re.findall(NUMBER.format(scale="10"), words)
    rest = re.sub(NUMBER.format(scale="10"), " ", words)
    if len(found) != 2 or rest.strip(" .;|"):
        return None
    return float(found[0]), float(found[1])


def read_letter(reply: str) -> str:
    """The capital letter that is the reply's first line, whatever explanation follows; the reply itself without one."""
    first = LETTER.fullmatch(_plain(reply).split("\n")[0])
    return first[1] if first else reply


def _plain(reply: str) -> str:
    """Without Markdown's marks and quotes."""
    return re.sub(r"[*_`\"#$]", "", reply).strip()
