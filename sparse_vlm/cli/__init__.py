"""The `sparse-vlm` command: a table of subcommands, each of them a module with its arguments and its work."""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points, version
from typing import Protocol

from sparse_vlm.cli import build, card, chat, convert, export, info, rois, serve
from sparse_vlm.command_line import CommandParser, Commands, describe
from sparse_vlm.errors import one_line


class Command(Protocol):
    """A module of this folder; its docstring is the help and holds examples."""

    def add_arguments(self, parser: CommandParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> None: ...


COMMANDS: dict[str, Command] = {
    "info": info,
    "convert": convert,
    "export": export,
    "rois": rois,
    "build": build,
    "chat": chat,
    "serve": serve,
    "card": card,
}
PLUG_INS = "sparse_vlm.commands"  # the group of entry points; each is a function that adds subcommands to `Commands`


def build_parser() -> CommandParser:
    """The parser of `sparse-vlm`; every subcommand sets `run`, a function of the parsed arguments."""
    parser = CommandParser(
        "sparse-vlm",
        "SparseFormer encoders for multimodal LLMs.",
        "  sparse-vlm info\n  sparse-vlm COMMAND --help    # the arguments of a command, with examples",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('sparse-vlm')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        description, examples = describe(command.__doc__)
        subparser = commands.add_parser(name, help=description.rstrip("."), description=description, examples=examples)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    for plug_in in entry_points(group=PLUG_INS):
        _add_plug_in(commands, plug_in)
    return parser


def _add_plug_in(commands: Commands, plug_in: EntryPoint) -> None:
    """Add the commands of another package. One that fails to load is reported where it is used, and only there."""
    try:
        plug_in.load()(commands)
    except Exception as error:  # whatever another package raises: the other commands still work
        origin = f" of the package {plug_in.dist.name}" if plug_in.dist else ""
        failure = f"The command {plug_in.name}{origin} cannot be loaded: {one_line(error)}."
        if plug_in.name in commands.choices:  # e.g. the name is taken
            print(f"warning: {failure}", file=sys.stderr)
        else:
            commands.add_parser(plug_in.name, help="cannot be loaded", failure=failure)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `sparse-vlm` command; returns the exit status."""
    return build_parser().run(lambda arguments: arguments.run(arguments), argv)
