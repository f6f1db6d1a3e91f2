"""The argument parser of all commands, and their log lines.

One spelling of options, one-line errors, examples in the help.
"""

import argparse
import difflib
import logging
import re
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any, Self, TypeAlias

from sparse_vlm.errors import UserError, exit_with_sentence

Commands: TypeAlias = "argparse._SubParsersAction[CommandParser]"  # where subcommands are added
# roots of the loggers of this project; a module that runs as a command logs as __main__
LOGGERS = ("sparse_vlm", "train", "eval", "demo", "__main__")
OPTION = re.compile(r"(--?[A-Za-z][\w-]*)(=.*)?", re.DOTALL)


class CommandParser(argparse.ArgumentParser):
    """Argument parser of a command that people type.

    Define options with underscores; hyphens are accepted in their place, so that `--batch-size 8` is `--batch_size 8`.
    Options cannot be abbreviated. Every error is one line on stderr with exit status 2; an unknown option names the
    nearest one.

    Args:
        prog: the command as it is typed, e.g. "python -m eval.score".
        description: one sentence on what the command does.
        examples: command lines to print below the options.
        failure: the reason why the command cannot run. Any use of it then ends with this error.
    """

    def __init__(
        self, prog: str | None = None, description: str | None = None, examples: str = "", failure: str = ""
    ) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=f"examples:\n{examples}" if examples else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.failure = failure
        self._negative_number_matcher = re.compile(r"-\.?\d")  # a value that begins so: -1, and also -0.5,0,1,1

    @classmethod
    def of_module(cls, module: str, docstring: str | None) -> Self:
        """Create the parser of `python -m MODULE`.

        Args:
            module: the dotted name.
            docstring: the module's. Its first paragraph is the description, its indented lines are the examples.
        """
        return cls(f"python -m {module}", *describe(docstring))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, but exit at an unknown option, in the subcommand that got it."""
        if self.failure:
            self.exit(2, f"error: {self.failure}\n")
        words = list(sys.argv[1:] if args is None else args)
        end = len(words) if self._subparsers is None else _first_positional(words)  # a subcommand's options are its own
        try:
            words[:end] = spell_options(words[:end], self._option_string_actions, self.prog)
        except UserError as error:
            self.exit(2, f"error: {error}\n")
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> Any:
        """Exit with one line and status 2, without argparse's list of all options."""
        end = "" if message.endswith((".", "?")) else "."
        self.exit(2, f"error: {message[:1].upper()}{message[1:]}{end} See {self.prog} --help.\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Name the nearest subcommand or choice where argparse lists all of them."""
        if action.choices is None or value in action.choices:
            return
        known = [str(choice) for choice in action.choices]
        kind = "command" if isinstance(action, argparse._SubParsersAction) else _name_of(action)
        hint = _did_you_mean(str(value), known) or f" Choices: {', '.join(known)}."
        raise argparse.ArgumentError(None, f"Unknown {kind} {value}.{hint}")

    def _match_argument(self, action: argparse.Action, arg_strings_pattern: str) -> int:
        """Say that an option needs a value where argparse says "expected one argument"."""
        try:
            return super()._match_argument(action, arg_strings_pattern)
        except argparse.ArgumentError:
            if not action.option_strings or action.nargs not in (None, "+"):
                raise
            raise argparse.ArgumentError(None, f"{_name_of(action)} needs a value.") from None

    def run(self, command: Callable[[argparse.Namespace], int | None], argv: Sequence[str] | None = None) -> int:
        """Parse the command line, run `command` on the result and return the exit status; see `exit_with_sentence`."""
        arguments = self.parse_args(argv)
        log_plainly()
        return exit_with_sentence(lambda: command(arguments))


def describe(docstring: str | None) -> tuple[str, str]:
    """Split a module's docstring: its first paragraph, and its indented lines, which are examples of the command.

    At least one later line, such as "Examples:", must not be indented: `ruff format` removes an indentation that all
    lines share.
    """
    text = docstring or ""
    examples = [line[2:] for line in text.splitlines() if line.startswith("    ")]
    return text.partition("\n\n")[0].strip(), "\n".join(examples)


def spell_options(words: Sequence[str], known: Collection[str], program: str) -> list[str]:
    """Spell each option of a command line as it is defined.

    Args:
        words: options, their values and other arguments; words after a lone "--" stay as they are.
        known: the options, with their dashes.
        program: the command, for the error message.

    Raises:
        UserError: an option is unknown; the message names the nearest ones.
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
    """Create the error for an unknown option; it names the nearest ones and the command that lists all of them."""
    return UserError(f"Unknown option {name}.{_did_you_mean(name, known)} See {program} --help.")


def _did_you_mean(name: str, known: Collection[str]) -> str:
    """Return " Did you mean A or B?": the nearest name, and others that are clearly near; "" if none resembles it."""
    best = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.75) or best
    return f" Did you mean {' or '.join(near)}?" if near else ""


def _name_of(action: argparse.Action) -> str:
    """Return the long spelling of an option, or the name of a positional argument in the help."""
    return action.option_strings[-1] if action.option_strings else str(action.metavar or action.dest)


def _spelling(name: str, known: Collection[str]) -> str | None:
    """Find the known option that differs only in hyphens and underscores."""
    dashes = name[: len(name) - len(name.lstrip("-"))]
    plain = name.lstrip("-")
    for spelling in (plain.replace("-", "_"), plain.replace("_", "-")):
        if dashes + spelling in known:
            return dashes + spelling
    return None


def _first_positional(words: Sequence[str]) -> int:
    return next((place for place, word in enumerate(words) if not word.startswith("-")), len(words))


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """Add --device, for `sparse_vlm.devices.choose_device`."""
    parser.add_argument(
        "--device",
        default="auto",
        help="auto: the accelerator if there is one, else the CPU; or cpu, cuda, cuda:1, mps, xpu … (default: auto)",
    )


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --device and --dtype, for `sparse_vlm.devices.choose_device` and `choose_dtype`."""
    add_device_argument(parser)
    parser.add_argument(
        "--dtype",
        default="auto",
        help="auto: bfloat16 where the accelerator or CPU computes it natively, else float32; or float32, bfloat16, "
        "float16 (default: auto)",
    )


class PlainFormatter(logging.Formatter):
    """Format information as the message alone, and the rest as "warning: …" or "error: …"."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


def add_video_arguments(parser: argparse._ActionsContainer) -> None:
    """Add the options for how videos are shown: the fields of `sparse_vlm.vlm.videos.processor.VideoOptions`."""
    parser.add_argument("--fps", type=float, help="frames per second of a video that the model sees (default: 2)")
    parser.add_argument(
        "--max_frames",
        type=int,
        help="most frames of a video; a longer one has fewer per second (default: 64)",
    )
    parser.add_argument(
        "--frame_tokens",
        type=int,
        metavar="K",
        help="number of visual tokens of each frame of a video, e.g. 9 (default: the model's own)",
    )
    parser.add_argument("--timestamps", action="store_true", help="write the time of each frame of a video before it")


def log_plainly() -> None:
    """Print the project's information, and everybody's warnings, to stderr. Commands call this before they start.

    Handlers that the process already has stay, and then this adds none.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(PlainFormatter())
    logging.basicConfig(handlers=[handler])
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO)
