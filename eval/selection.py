"""Which benchmarks a command is about, and where the files of each lie.

Where there are several, an option such as --questions is given as NAME=PATH for each, and --answers and --output name
folders with a file for each.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from eval.benchmarks import BENCHMARKS, find_benchmark
from sparse_vlm.errors import UserError

NAMED = "; of several benchmarks: NAME=FILE for each"


def add_benchmarks(parser: argparse.ArgumentParser) -> None:
    """Adds the positional arguments: one or several names."""
    parser.add_argument("benchmarks", nargs="+", metavar="BENCHMARK", help=f"one or several of {', '.join(BENCHMARKS)}")


def add_path(parser: argparse._ActionsContainer, option: str, text: str, *, required: bool = False) -> None:
    """Adds an option that takes a path, or NAME=PATH several times; `path_of` reads it."""
    parser.add_argument(option, action="append", metavar="[NAME=]PATH", required=required, help=text)


def benchmark_names(given: Sequence[str]) -> list[str]:
    """The names, each once; commas separate them as well.

    Raises:
        UserError: an unknown one.
    """
    names = [name for text in given for name in text.split(",") if name]
    for name in names:
        find_benchmark(name)
    return list(dict.fromkeys(names))


def path_of(option: str, given: Sequence[str] | None, name: str, names: Sequence[str]) -> Path | None:
    """The path that an option has for a benchmark: its own, or the one that is given without a name.

    Args:
        option: for errors, e.g. "--questions".
        given: its values.
        name: the benchmark.
        names: all benchmarks of the command.

    Raises:
        UserError: two paths for one benchmark, or one for a benchmark that the command is not about.
    """
    paths: dict[str | None, str] = {}
    for text in given or ():
        start, equals, rest = text.partition("=")
        key, path = (start, rest) if equals and start in BENCHMARKS else (None, text)
        if key is not None and key not in names:
            raise UserError(f"{option} {text}: the command is not about {key}. Its benchmarks: {', '.join(names)}.")
        if key in paths:
            raise UserError(f"{option} was given twice, as {paths[key]} and as {path}. Leave one out.")
        paths[key] = path
    found = paths.get(name, paths.get(None))
    return None if found is None else Path(found)


def file_of(option: str, given: Sequence[str] | None, name: str, names: Sequence[str], ending: str) -> Path | None:
    """As `path_of`, for files to write or their answers: of several benchmarks a path without a name is a folder, which
    has NAME and `ending` in it."""
    path = path_of(option, given, name, names)
    own = any(text.startswith(f"{name}=") for text in given or ())
    return path / f"{name}{ending}" if path is not None and len(names) > 1 and not own else path
