"""Command lines of the training commands: an optional recipe file, then options that override it."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from sparse_vlm.command_line import CommandParser, describe, log_plainly, spell_options, unknown_option
from sparse_vlm.errors import UserError, exit_with_sentence


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Show defaults where there are any; keep the line breaks of the description and the examples."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class StageParser(CommandParser, HfArgumentParser):
    """A `CommandParser` whose options are the fields of dataclasses, by transformers' HfArgumentParser.

    Args:
        classes: dataclasses, one object of each is parsed.
        module: the command's dotted name.
        docstring: the command's module docstring, see `CommandParser.of_module`.
    """

    def __init__(self, classes: Sequence[type], module: str, docstring: str | None) -> None:
        prog = f"python -m {module}"
        super().__init__(prog, *describe(docstring))
        self.usage = f"{prog} [RECIPE.yaml] [--OPTION VALUE ...]"
        self.formatter_class = _Help
        self.dataclass_types = list(classes)  # type: ignore[arg-type]
        for each in classes:
            self._add_dataclass_arguments(each)  # type: ignore[arg-type]

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """Drop transformers' aliases with hyphens: `CommandParser` accepts hyphens in every option."""
        return super().add_argument(*(name for name in names if "-" not in name.lstrip("-")), **options)


def run_command(
    module: str,
    docstring: str | None,
    classes: Sequence[type],
    command: Callable[..., None],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse a training command's arguments, run it on them and return the exit status.

    Args:
        module: the command's dotted name.
        docstring: the command's module docstring: description and examples of `--help`.
        classes: the command's argument classes.
        command: called with one object of each class.
        argv: the words after the command's name; None: those of this process.
    """
    words = sys.argv[1:] if argv is None else argv
    log_plainly()
    return exit_with_sentence(lambda: command(*parse_arguments(classes, words, module, docstring)))


def parse_arguments(
    classes: Sequence[type], argv: Sequence[str], module: str = "train", docstring: str | None = None
) -> tuple[Any, ...]:
    """Fill argument classes from a command line.

    The first word may be a recipe, see `read_recipe`. Options override the recipe, and the recipe overrides the
    defaults. A null in a recipe keeps the default.

    Args:
        classes: dataclasses; one object of each is returned, in this order.
        argv: the words after the command's name, e.g. `["recipe.yaml", "--max_steps", "10"]`.
        module: the command's dotted name, for help and errors.
        docstring: the command's module docstring, for the help.

    Raises:
        UserError: an unknown option, in the command line or in the recipe, or an unreadable recipe.
        SystemExit: `--help`, or a missing or malformed value.
    """
    parser = StageParser(classes, module, docstring)
    words = list(argv)
    # DeepSpeed's launcher puts --local_rank=N before all other words.
    start = next((index for index, word in enumerate(words) if not word.startswith("--local_rank=")), 0)
    recipe = words.pop(start) if words and not words[start].startswith("-") else None
    words = spell_options(words, parser._option_string_actions, parser.prog)
    if recipe is not None:
        values = read_recipe(recipe, classes, parser.prog)
        words[:0] = [word for name, value in values.items() if value is not None for word in _as_words(name, value)]
    return parser.parse_args_into_dataclasses(words, look_for_args_file=False)


def read_recipe(file: str | Path, classes: Sequence[type], program: str = "train") -> dict[str, Any]:
    """Read option names and values from a YAML or JSON file.

    `base: FILE`, relative to the recipe, names a file of further options, which those of the recipe override. A base
    has no base of its own.

    Args:
        file: the recipe.
        classes: dataclasses whose fields are the options.
        program: the command, for errors.

    Raises:
        UserError: a file is missing or not a mapping, or names an option that none of the classes has.
    """
    recipe = _read_mapping(Path(file))
    values = {}
    if (base := recipe.pop("base", None)) is not None:
        values = _checked(_read_mapping(Path(file).parent / str(base)), Path(file).parent / str(base), classes, program)
    return values | _checked(recipe, Path(file), classes, program)


def check_ranges(arguments: object, ranges: Mapping[str, str]) -> None:
    """Check that numbers lie in their intervals. None, a value that is not given, passes.

    Args:
        arguments: an object of an argument class.
        ranges: name -> interval in mathematical notation, e.g. "(0, 1]" or "[0, inf)".

    Raises:
        UserError: a number lies outside its interval.
    """
    for name, interval in ranges.items():
        value = getattr(arguments, name)
        if value is None:
            continue
        low, high = map(float, interval[1:-1].split(","))
        above = value >= low if interval[0] == "[" else value > low
        below = value <= high if interval[-1] == "]" else value < high
        if not (above and below):
            raise UserError(f"--{name} must lie in {interval}, got {value:g}.")


def _read_mapping(file: Path) -> dict[Any, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))  # JSON is YAML
    except OSError as error:
        raise UserError(f"Cannot read the recipe {file}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"The recipe {file} is not UTF-8 text: {error}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"The recipe {file} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise UserError(f"The recipe {file} must hold option names and values, one `NAME: VALUE` per line.")
    return values


def _checked(recipe: Mapping[Any, Any], file: Path, classes: Sequence[type], program: str) -> dict[str, Any]:
    """Return the recipe with its names spelled as the options are."""
    names = [item.name for each in classes for item in fields(each) if item.init]
    values = {str(name).replace("-", "_"): value for name, value in recipe.items()}
    for name in values:
        if name not in names:
            options = [f"--{each}" for each in names]
            raise UserError(f"The recipe {file}: {unknown_option(f'--{name}', options, program)}")
    return values


def _as_words(name: str, value: Any) -> list[str]:
    """A mapping is written as JSON, as transformers expects it."""
    values = value if isinstance(value, list) else [value]
    return [f"--{name}", *(json.dumps(item) if isinstance(item, dict) else str(item) for item in values)]
