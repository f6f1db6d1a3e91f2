"""Errors that a user can act on: one sentence with the offending value and what to do."""

import difflib
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Bad input. The message is a full sentence, which commands print without a traceback."""


def unknown_choice(kind: str, name: str, choices: Iterable[str], meant: str | None = None) -> UserError:
    """Return the error for a name that is not among `choices`. It lists the nearest names, and all if they are few.

    Args:
        kind: what the name stands for, e.g. "encoder variant".
        name: the offending value.
        choices: all valid values.
        meant: the choice to suggest where spelling does not tell. Ignored if it is not a choice.
    """
    known = sorted(choices)
    near = [meant] if meant in known else difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else ""
    if near and len(known) > 30:
        return UserError(f"Unknown {kind} {name!r}. {hint}")
    rest = f" and {len(known) - 30} more" if len(known) > 30 else ""
    return UserError(f"Unknown {kind} {name!r}. {hint}{' ' * bool(near)}Choices: {', '.join(known[:30])}{rest}.")


def lost_by_optimisation(use: str) -> UserError:
    """Return the error for a use that `optimize_for_inference` takes from a model, e.g. "trained"."""
    return UserError(f"This model was optimised for inference and cannot be {use}: load it again for that.")


def check_choice(kind: str, name: str, choices: Iterable[str]) -> None:
    """Check that `name` is among `choices`; see `unknown_choice` for the arguments and the error."""
    known = list(choices)
    if name not in known:
        raise unknown_choice(kind, name, known)


@contextmanager
def error_context(place: str) -> Iterator[None]:
    """Prefix the UserErrors of a block with the place where they occurred, e.g. "Sample 7"."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


@contextmanager
def optional_import(feature: str, extra: str) -> Iterator[None]:
    """Turn a failed import into an error that says which extra to install.

    Args:
        feature: what needs the package, as the subject of a sentence, e.g. "ONNX export".
        extra: the extra of sparse-vlm that installs the package.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"{feature} needs {error.name}: pip install 'sparse-vlm[{extra}]'.") from error


def some_of(names: Iterable[str]) -> str:
    """Join at most 10 names for a sentence and say how many more there are; "(none)" if there are none."""
    known = list(names)
    rest = f" and {len(known) - 10} more" if len(known) > 10 else ""
    return f"{', '.join(known[:10])}{rest}" if known else "(none)"


def short(value: object) -> str:
    """Return the `repr` of a value for a sentence, cut after 100 characters."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}…"


def one_line(error: Exception) -> str:
    """Return the message of another library's error on one line, cut after 500 characters.

    A message of a single word, such as a KeyError's, is preceded by the error's type.
    """
    kind, text = type(error).__name__, " ".join(str(error).split())
    if " " not in text:
        text = f"{kind}: {text}" if text else kind
    return text if len(text) <= 500 else f"{text[:500]} …"


def exit_with_sentence(main: Callable[[], int | None]) -> int:
    """Run a command and return its exit status.

    A UserError, or an OSError that names a file, prints one line to stderr and returns 2; so does standard output on a
    full disk. Ctrl-C returns 130 and a closed pipe 141, as in a shell, and neither prints anything.
    """
    try:
        status = main() or 0
        if sys.stdout is not None:
            sys.stdout.flush()  # detect a closed pipe here, not while the interpreter shuts down
        return status
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        _silence()
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.filename is not None:  # pathlib raises these even from Path.exists()
            print(f"error: {one_line(error)}. Check the path and its permissions.", file=sys.stderr)
            return 2
        if error.errno != errno.ENOSPC:
            raise
        _silence()
        print(f"error: Cannot print: {error.strerror}.", file=sys.stderr)
        return 2
    except UserError as error:
        # torch puts the traceback of a data loader's worker process before the message
        sentence = str(error).rpartition(f"{UserError.__name__}: ")[2].strip()
        print(f"error: {sentence}", file=sys.stderr)
        return 2


def _silence() -> None:
    """Redirect standard output to nowhere, because the interpreter flushes it once more when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
