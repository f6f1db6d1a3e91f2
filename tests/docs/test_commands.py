"""Every command in README.md and docs/ is parsed by its own program, in this process; nothing runs."""

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sparse_vlm import cli
from tests.docs.test_help import main_of, subcommands

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OURS = ("sparse_vlm.", "train.", "eval.", "demo.")
# These pass their arguments on: to LLaVA (llava_patch, which is not among OURS), and to VLMEvalKit.
PASSED_ON = "sparse_vlm.integrations.vlmevalkit"
MODULE = ("-m", "--module")  # of Python and torchrun; of DeepSpeed's launcher
DOTS = {"...", "…", "ARGS…"}


class Command(NamedTuple):
    """A command on a page.

    Attributes:
        program: "sparse-vlm", "make", or a module.
        words: its arguments.
        whole: the command is not abbreviated with "...".
    """

    program: str
    words: list[str]
    whole: bool


def commands(text: str) -> Iterator[Command]:
    """Find the commands in code blocks, whole or abbreviated, and those in the text, which may be incomplete."""
    for language, block in re.findall(r"^ *```(\w*)\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines() if language in ("", "bash") else ():
            yield from _command(line, inline=False)
    for inline in re.findall(r"`([^`\n]+)`", re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)):
        yield from _command(inline, inline=True)


def _command(line: str, *, inline: bool) -> Iterator[Command]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&;|<>")
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:  # an unclosed quotation mark: not a command
        return
    for start, word in enumerate(words):
        program = _program(words, start, inline=inline)
        if program is None:
            continue
        rest = words[start + (2 if word in MODULE else 1) :]
        end = next((index for index, each in enumerate(rest) if set(each) <= set("&;|<>")), len(rest))
        arguments = [each for each in rest[:end] if each not in DOTS]
        yield Command(program, arguments, whole=not inline and len(arguments) == end)
        return


def _program(words: list[str], place: int, *, inline: bool) -> str | None:
    """Name the program that the word at `place` starts; None if it is not one of ours."""
    word, behind = words[place], words[place + 1 :]
    first = all("=" in before for before in words[:place])  # environment variables may stand before it
    if (Path(word).name == "sparse-vlm" and first) or (word == "make" and first and (len(behind) == 1 or not inline)):
        return Path(word).name
    if word in MODULE and behind and behind[0].startswith(OURS) and behind[0] != PASSED_ON:
        return behind[0]
    return None


ALL = [(page.relative_to(ROOT), command) for page in PAGES for command in commands(page.read_text(encoding="utf-8"))]
NAMED = [pytest.param(command, id=f"{page}: {command.program} {' '.join(command.words)[:60]}") for page, command in ALL]


class Parsed(BaseException):
    """Raised when a program has parsed its arguments, to stop it there."""


@pytest.fixture
def only_parse(monkeypatch: pytest.MonkeyPatch) -> list[argparse.ArgumentParser]:
    """Make programs raise Parsed instead of working. The list collects the parsers that were used, outermost first."""
    parse, used = argparse.ArgumentParser.parse_known_args, list[argparse.ArgumentParser]()

    def parse_and_stop(parser: argparse.ArgumentParser, *args: Any, **options: Any) -> Any:
        outermost = not used
        used.append(parser)
        result = parse(parser, *args, **options)
        if not outermost:
            return result
        if result[1]:
            parser.error(f"unrecognized arguments: {' '.join(result[1])}")
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_and_stop)
    return used


@pytest.mark.parametrize("command", NAMED)
def test_a_command_is_valid(
    command: Command, only_parse: list[argparse.ArgumentParser], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    if command.program == "make":
        targets = set(re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert {word for word in command.words if "=" not in word} <= targets
        return
    main = cli.main if command.program == "sparse-vlm" else main_of(command.program)
    with pytest.raises((Parsed, SystemExit)) as end:
        main(command.words)
    if isinstance(end.value, SystemExit) and "--help" not in command.words:
        assert not command.whole, command  # argparse has printed the reason
        known = {option for parser in only_parse for option in parser._option_string_actions}
        assert {word.partition("=")[0] for word in command.words if re.match(r"--?[a-z]", word)} <= known


def test_every_subcommand_is_in_the_table() -> None:
    table = re.findall(r"^\| `sparse-vlm (\w+)` \|", (ROOT / "docs" / "cli.md").read_text(), re.MULTILINE)
    assert sorted(table) == sorted({words[0] for words in subcommands(cli.build_parser()) if words})


def test_commands_are_found() -> None:
    """A test of `commands` itself."""
    text = """Run `make test` or `sparse-vlm llava enable | disable`, not `python -m eval.score`'s `--help`.

```
CUDA=1 .venv/bin/sparse-vlm chat --model DIR "What is it?"   # a question
make quickstart
```

```bash
deepspeed --num_gpus 8 --module train.align recipe.yaml \\
    --bf16 True ...
for gpu in 0 1; do python -m eval.generate gqa ... --answers A & done; wait
```

```python
sparse-vlm nothing
```
"""
    assert list(commands(text)) == [
        Command("sparse-vlm", ["chat", "--model", "DIR", "What is it?"], True),
        Command("make", ["quickstart"], True),
        Command("train.align", ["recipe.yaml", "--bf16", "True"], False),
        Command("eval.generate", ["gqa", "--answers", "A"], False),
        Command("make", ["test"], False),
        Command("sparse-vlm", ["llava", "enable"], False),
        Command("eval.score", [], False),
    ]
    assert len({command.program for _, command in ALL}) > 10
