"""Errors that a user can act on: one sentence with the offending value and what to do."""

import difflib
import sys
from collections.abc import Callable, Iterable


class UserError(ValueError):
    """Bad input. Its message is a full sentence; entry points print it without a traceback."""


def unknown_choice(kind: str, name: str, choices: Iterable[str]) -> UserError:
    """The error for a name that is not among `choices`: names the nearest ones, and all unless they are many.

    Args:
        kind: what the name stands for, e.g. "encoder variant".
        name: the offending value.
        choices: every valid value.
    """
    known = sorted(choices)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else ""
    if near and len(known) > 30:
        return UserError(f"Unknown {kind} {name!r}. {hint}")
    rest = f" and {len(known) - 30} more" if len(known) > 30 else ""
    return UserError(f"Unknown {kind} {name!r}. {hint}{' ' * bool(near)}Choices: {', '.join(known[:30])}{rest}.")


def one_line(error: Exception) -> str:
    """The message of another library's error on one line, cut where it goes on and on.

    A message of one word, as a KeyError's, says nothing without the error's kind.
    """
    kind, text = type(error).__name__, " ".join(str(error).split())
    if " " not in text:
        text = f"{kind}: {text}" if text else kind
    return text if len(text) <= 500 else f"{text[:500]} …"


def exit_with_sentence(main: Callable[[], int | None]) -> int:
    """Runs an entry point; a UserError becomes one line on stderr and exit status 2."""
    try:
        return main() or 0
    except UserError as error:
        # that of a data loader's worker process comes with torch's words and the worker's traceback before its own
        sentence = str(error).rpartition(f"{UserError.__name__}: ")[2].strip()
        print(f"error: {sentence}", file=sys.stderr)
        return 2
