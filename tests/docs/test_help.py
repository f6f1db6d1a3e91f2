"""The help of every command ends with examples of that command and spells its options with underscores."""

import argparse
import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sparse_vlm import cli

ROOT = Path(__file__).parents[2]
FOLDERS = ("eval", "train", "demo", "llava_patch")
WORKERS = {"eval.cost.gpu.worker"}  # started by a command, not by people


def modules() -> list[str]:
    """Names of all modules in FOLDERS that run with `python -m`."""
    found = []
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            if '__name__ == "__main__"' in file.read_text(encoding="utf-8"):
                found.append(".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__"))
    return [name for name in found if name not in WORKERS]


def subcommands(parser: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Words that name each subcommand of `sparse-vlm` that works, e.g. ("llava", "enable")."""
    if getattr(parser, "failure", ""):
        return []
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    below = [
        found for each in nested for name, sub in each.choices.items() for found in subcommands(sub, (*words, name))
    ]
    return [words, *below]


def main_of(name: str) -> Any:
    """The function that `python -m NAME` calls."""
    module = importlib.import_module(name)
    return importlib.import_module(f"{name}.__main__").main if hasattr(module, "__path__") else module.main


def check_help(main: Any, words: Sequence[str], command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*words, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    _, heading, examples = text.partition("\nexamples:\n")
    assert heading, f"{command} --help has no examples"
    assert re.search(rf"\b{re.escape(command)}\b", examples), f"the examples of {command} --help do not show it"
    assert all(not line or line.startswith("  ") for line in examples.splitlines()), "the examples must come last"
    documented = [option for line in text.splitlines() for option in re.findall(r"^  .*?(--[\w-]+)", line)]
    hyphens = {option for option in documented if "-" in option.lstrip("-")}
    assert not hyphens, f"{command}: spell {', '.join(sorted(hyphens))} with underscores"


@pytest.mark.parametrize("name", modules())
def test_help_of_a_module(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    check_help(main_of(name), [], name, capsys)


@pytest.mark.parametrize("words", subcommands(cli.build_parser()), ids=" ".join)
def test_help_of_sparse_vlm(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    check_help(cli.main, words, " ".join(["sparse-vlm", *words]), capsys)
