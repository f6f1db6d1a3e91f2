"""Read grades and letters in a judge's reply, in any form: "0.5", "**0.5**", "Correctness: 0.5", "Letter: B"."""

import re

NUMBER = r"(?<![\w.,/-])(\d+(?:\.\d+)?|\.\d+)(?:\s*(?:/|out of)\s*{scale}(?:\.0)?)?(?![\w%/-]|[.,]\d)"
LABEL = r"(?:correctness|score|grade|rating)\b[^\d\n]{{0,20}}?(?:[:=]|\bis|\bof)\s*"
LIST_ITEM = re.compile(r"\d+[.)]\s+\S")
LETTER = re.compile(r"(?:(?:[Tt]he )?(?:[Ll]etter|[Aa]nswer|[Oo]ption)(?:\s*[:=]|\s+is)?\s*)?\(?([A-Z])[).]*\s*")
ROLE = re.compile(r"^(?:assistant|ai)\s*\d\s*:", re.IGNORECASE | re.MULTILINE)


def read_grade(reply: str) -> float | None:
    """Read the grade from 0 to 1 in a reply; None: no grade, or several candidates.

    The grade is the number at the start of the reply, or one after a word like "Correctness:", or the only number.
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
    """Read two grades from the reply's first line, or from one line per assistant; None: there are not two.

    Examples: "8 6", "Scores: 8, 6", "8/10 6/10", "Assistant 1: 8".
    """
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
    """Read the capital letter on the reply's first line, ignoring what follows; without one, return the reply."""
    first = LETTER.fullmatch(_plain(reply).split("\n")[0])
    return first[1] if first else reply


def _plain(reply: str) -> str:
    """Remove Markdown's marks and quotes."""
    return re.sub(r"[*_`\"#$]", "", reply).strip()
