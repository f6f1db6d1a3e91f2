"""Errors that a user can act on: one sentence with the offending value and what to do."""

import difflib
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterable


class UserError(ValueError):
    """Bad input. Its message is a full sentence; entry points print it without a traceback."""


def unknown_choice(kind: str, name: str, choices: Iterable[str], meant: str | None = None) -> UserError:
    """The error for a name that is not among `choices`: names the nearest ones, and all unless they are many.

    Args:
        kind: what the name stands for, e.g. "encoder variant".
        name: the offending value.
        choices: every valid value.
        meant: the one that `name` means, where spelling does not tell; ignored if it is not among them.
    """
    known = sorted(choices)
    near = [meant] if meant in known else difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else ""
    if near and len(known) > 30:
        return UserError(f"Unknown {kind} {name!r}. {hint}")
    rest = f" and {len(known) - 30} more" if len(known) > 30 else ""
    return UserError(f"Unknown {kind} {name!r}. {hint}{' ' * bool(near)}Choices: {', '.join(known[:30])}{rest}.")


def some_of(names: Iterable[str]) -> str:
    """Names for a sentence, at most 10 of them, and how many more there are; "(none)" of none."""
    known = list(names)
    rest = f" and {len(known) - 10} more" if len(known) > 10 else ""
    return f"{', '.join(known[:10])}{rest}" if known else "(none)"


def one_line(error: Exception) -> str:
    """The message of another library's error on one line, cut where it goes on and on.

    A message of one word, as a KeyError's, says nothing without the error's kind.
    """
    kind, text = type(error).__name__, " ".join(str(error).split())
    if " " not in text:
        text = f"{kind}: {text}" if text else kind
    return text if len(text) <= 500 else f"{text[:500]} …"


def exit_with_sentence(main: Callable[[], int | None]) -> int:
    """Run an entry point and return its exit status.

    A UserError, or an OSError that names a file, prints one line to stderr and gives 2. Ctrl-C gives 130 and a closed
    pipe 141, as in a shell, both without a word. Standard output on a full disk gives a line and 2.
    """
    try:
        status = main() or 0
        if sys.stdout is not None:
            sys.stdout.flush()  # a closed pipe shows here, not while the interpreter shuts down
        return status
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        _silence()
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.filename is not None:  # pathlib raises these where one merely asks whether a file exists
            print(f"error: {one_line(error)}. Check the path, and who may read or write there.", file=sys.stderr)
            return 2
        if error.errno != errno.ENOSPC:
            raise
        _silence()
        print(f"error: Cannot print: {error.strerror}.", file=sys.stderr)
        return 2
    except UserError as error:
        # that of a data loader's worker process comes with torch's words and the worker's traceback before its own
        sentence = str(error).rpartition(f"{UserError.__name__}: ")[2].strip()
        print(f"error: {sentence}", file=sys.stderr)
        return 2


def _silence() -> None:
    """Close standard output for good: the interpreter flushes it once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
