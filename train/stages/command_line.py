"""Command lines of the training scripts: an optional recipe file, then flags that override it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from sparse_vlm.errors import UserError, unknown_choice


def parse_arguments(classes: Sequence[type], argv: Sequence[str]) -> tuple[Any, ...]:
    """The argument classes, filled from a command line.

    The first word may be a recipe: a YAML or JSON file of argument names and values. A flag of the command line wins
    over the recipe, and the recipe over the default; a null in a recipe leaves the default.

    Args:
        classes: dataclasses; one object of each is returned, in this order.
        argv: the words behind the script's name, e.g. `["recipe.yaml", "--max_steps", "10"]`.

    Raises:
        UserError: an unknown flag or recipe entry (the nearest ones are named), or an unreadable recipe.
        SystemExit: argparse's own errors: a missing or malformed value.
    """
    parser = HfArgumentParser(classes, allow_abbrev=False)  # type: ignore[arg-type]
    words = list(argv)
    # deepspeed's launcher puts --local_rank=N before all other words
    start = next((index for index, word in enumerate(words) if not word.startswith("--local_rank=")), 0)
    if words and not words[start].startswith("-"):
        recipe = read_recipe(words.pop(start), classes)
        words[:0] = [word for name, value in recipe.items() if value is not None for word in _as_words(name, value)]
    *filled, unknown = parser.parse_args_into_dataclasses(
        words, return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        raise unknown_choice("argument", unknown[0].lstrip("-").partition("=")[0], _names(classes))
    return tuple(filled)


def read_recipe(file: str | Path, classes: Sequence[type]) -> dict[str, Any]:
    """Argument names and values of a YAML or JSON file.

    Raises:
        UserError: the file is missing or no mapping, or names an argument that no class has.
    """
    try:
        values = yaml.safe_load(Path(file).read_text(encoding="utf-8"))  # JSON is YAML
    except OSError as error:
        raise UserError(f"There is no recipe {file}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"The recipe {file} is no text in UTF-8: {error}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"The recipe {file} is no valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise UserError(f"The recipe {file} does not hold argument names and values (NAME: VALUE, a line each).")
    for name in values:
        if name not in _names(classes):
            raise unknown_choice(f"argument in the recipe {file}", str(name), _names(classes))
    return values


def check_ranges(arguments: object, ranges: Mapping[str, str]) -> None:
    """Whether numbers lie where they must; None, a value that is not given, lies anywhere.

    Args:
        arguments: an object of an argument class.
        ranges: name -> interval as in mathematics, e.g. "(0, 1]" or "[0, inf)".

    Raises:
        UserError: one does not.
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


def _names(classes: Sequence[type]) -> list[str]:
    return [item.name for part in classes for item in fields(part) if item.init]


def _as_words(name: str, value: Any) -> list[str]:
    """A mapping is JSON, as transformers' flags have it."""
    values = value if isinstance(value, list) else [value]
    return [f"--{name}", *(json.dumps(item) if isinstance(item, dict) else str(item) for item in values)]
