"""What all command lines share: the spelling of options, errors that name the nearest one, examples in the help."""

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any, Self

from sparse_vlm.errors import UserError, exit_with_sentence

OPTION = re.compile(r"(--?[A-Za-z][\w-]*)(=.*)?", re.DOTALL)


class CommandParser(argparse.ArgumentParser):
    """An argument parser for commands that people type.

    Options are defined with underscores, and hyphens are accepted in their place: `--batch-size 8` is `--batch_size 8`.
    They cannot be abbreviated. Any error is one line on stderr and exit status 2; an unknown option names the nearest.

    Args:
        prog: how the command is called, e.g. "python -m eval.score".
        description: what it does, in a sentence.
        examples: command lines, shown behind the options.
    """

    def __init__(self, prog: str | None = None, description: str | None = None, examples: str = "") -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=f"examples:\n{examples}" if examples else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    @classmethod
    def of_module(cls, module: str, docstring: str | None) -> Self:
        """The parser of `python -m MODULE`.

        Args:
            module: its dotted name.
            docstring: of the module. Its first paragraph is the description, its indented lines are the examples.
        """
        return cls(f"python -m {module}", *describe(docstring))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, except that an unknown option is an error, raised by the subcommand that it was given to."""
        words = list(sys.argv[1:] if args is None else args)
        end = len(words) if self._subparsers is None else _first_positional(words)  # a subcommand's options are its own
        try:
            words[:end] = spell_options(words[:end], self._option_string_actions, self.prog)
        except UserError as error:
            self.exit(2, f"error: {error}\n")
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> Any:
        """Exits with one line and status 2, without argparse's list of every option."""
        self.exit(2, f"error: {message[:1].upper()}{message[1:]}. See {self.prog} --help.\n")

    def run(self, command: Callable[[argparse.Namespace], int | None], argv: Sequence[str] | None = None) -> int:
        """Parses the command line, runs `command` on it and returns the exit status, see `exit_with_sentence`."""
        arguments = self.parse_args(argv)
        return exit_with_sentence(lambda: command(arguments))


def describe(docstring: str | None) -> tuple[str, str]:
    """The first paragraph of a module's docstring, and its indented lines, which are examples of the command."""
    text = docstring or ""
    examples = [line[2:] for line in text.splitlines() if line.startswith("    ")]
    return text.partition("\n\n")[0].strip(), "\n".join(examples)


def spell_options(words: Sequence[str], known: Collection[str], program: str) -> list[str]:
    """The words of a command line with each option spelled as it is defined.

    Args:
        words: options, their values and other arguments; what stands behind a lone "--" is left alone.
        known: the options, with their dashes.
        program: the command, for the error.

    Raises:
        UserError: an option that is not among them; the nearest ones are named.
    """
    spelled = list(words)
    for place, word in enumerate(spelled):
        if word == "--":
            break
        match = OPTION.fullmatch(word)
        if match is None or match[1] in known:
            continue
        name = _spelling(match[1], known)
        if name is None and not match[1].startswith("--") and match[1][:2] in known:
            continue  # a short option with its value: -oFILE
        if name is None:
            raise unknown_option(match[1], known, program)
        spelled[place] = name + (match[2] or "")
    return spelled


def unknown_option(name: str, known: Collection[str], program: str) -> UserError:
    """The error for an option that does not exist: names the nearest ones, and where all of them are listed."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return UserError(f"Unknown option {name}.{hint} See {program} --help.")


def _spelling(name: str, known: Collection[str]) -> str | None:
    """The known option that differs in hyphens and underscores alone."""
    dashes = name[: len(name) - len(name.lstrip("-"))]
    plain = name.lstrip("-")
    for spelling in (plain.replace("-", "_"), plain.replace("_", "-")):
        if dashes + spelling in known:
            return dashes + spelling
    return None


def _first_positional(words: Sequence[str]) -> int:
    return next((place for place, word in enumerate(words) if not word.startswith("-")), len(words))
