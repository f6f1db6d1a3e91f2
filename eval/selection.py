"""Options that choose benchmarks and the files of each.

A command about several benchmarks takes options such as --questions as NAME=PATH for each benchmark, and --answers and
--output name folders with one file per benchmark.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from eval.benchmarks import BENCHMARKS, find_benchmark
from sparse_vlm.errors import UserError

NAMED = "; for several benchmarks: NAME=FILE for each"


def add_benchmarks(parser: argparse.ArgumentParser, *, answers: str, limit: str) -> None:
    """Add the benchmarks' names and the options --answers, --questions and --limit.

    Args:
        parser: the command's parser.
        answers: help of --answers.
        limit: help of --limit.
    """
    parser.add_argument("benchmarks", nargs="+", metavar="BENCHMARK", help=f"one or several of {', '.join(BENCHMARKS)}")
    add_path(parser, "--answers", answers, required=True)
    add_path(parser, "--questions", f"the benchmark's official question file{NAMED}")
    parser.add_argument("--limit", type=int, help=limit)


def add_path(parser: argparse._ActionsContainer, option: str, text: str, *, required: bool = False) -> None:
    """Add an option that takes a path, or NAME=PATH several times; `path_of` reads it."""
    parser.add_argument(option, action="append", metavar="[NAME=]PATH", required=required, help=text)


def benchmark_names(given: Sequence[str]) -> list[str]:
    """Return the chosen names, each once. Commas separate names too.

    Raises:
        UserError: unknown name.
    """
    names = [name for text in given for name in text.split(",") if name]
    for name in names:
        find_benchmark(name)
    return list(dict.fromkeys(names))


def path_of(option: str, given: Sequence[str] | None, name: str, names: Sequence[str]) -> Path | None:
    """Return the path that an option has for a benchmark: its own, or the one given without a name.

    Args:
        option: for errors, e.g. "--questions".
        given: the option's values.
        name: the benchmark.
        names: all benchmarks of the command.

    Raises:
        UserError: two paths for one benchmark, or a path for a benchmark that was not chosen.
    """
    paths: dict[str | None, str] = {}
    for text in given or ():
        start, equals, rest = text.partition("=")
        key, path = (start, rest) if equals and start in BENCHMARKS else (None, text)
        if key is not None and key not in names:
            raise UserError(f"{option} {text}: {key} is not one of the chosen benchmarks: {', '.join(names)}.")
        if key in paths:
            raise UserError(f"{option} was given twice, as {paths[key]} and as {path}. Leave one out.")
        paths[key] = path
    found = paths.get(name, paths.get(None))
    return None if found is None else Path(found)


def file_of(option: str, given: Sequence[str] | None, name: str, names: Sequence[str], ending: str) -> Path | None:
    """Return the path of a file that is one per benchmark, see `path_of`.

    With several benchmarks, a path without a name is a folder; the file in it is the benchmark's name plus `ending`.
    """
    path = path_of(option, given, name, names)
    own = any(text.startswith(f"{name}=") for text in given or ())
    return path / f"{name}{ending}" if path is not None and len(names) > 1 and not own else path
