"""train.pipeline: one line per step on the terminal, everything else in the step's log."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from sparse_vlm.errors import UserError
from tests.forked import run_program
from train.forked import LINES
from train.pipeline import SECONDS_FILE, Step, run_steps

PROGRAM = """
import sys, warnings
from pathlib import Path
from tqdm import tqdm

print("transformers" in sys.modules)
warnings.warn("of a library")
for _ in tqdm(range(3), desc="bar"):
    pass
Path(sys.argv[1]).write_text("5")
"""
FAILS = "import sys; print(*range({}), sep='\\n'); sys.exit('error: no such thing.')"


def step(folder: Path, name: str, program: str = PROGRAM) -> Step:
    """Return a step that runs a program and shows what its result file says."""
    file, result = folder / f"{name}.py", folder / f"{name}.txt"
    file.write_text(program)
    return Step(
        name, f"Title of {name}", (str(file), str(result)), result, None, lambda: f"showed {result.read_text()}"
    )


@pytest.fixture
def console() -> Console:
    """A console that is not a terminal."""
    return Console(file=io.StringIO(), width=20)


def printed(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().split("\n")[:-1]


def test_a_step_prints_one_line(tmp_path: Path, console: Console, capfd: pytest.CaptureFixture[str]) -> None:
    steps = [step(tmp_path, "a"), step(tmp_path, "longer")]
    run_steps(steps[:1], tmp_path, console)
    run_steps(steps, tmp_path, console)
    assert capfd.readouterr() == ("", "")
    first, *second = printed(console)
    assert first.split() == ["a", first.split()[1], "s", "showed", "5"]
    assert second[0] == "a       already done Title of a"
    assert second[1].startswith("longer  ")
    assert second[1].endswith(" s  showed 5")
    logged = [json.loads(line) for line in (tmp_path / SECONDS_FILE).read_text().splitlines()]
    assert [(line["step"], line["resumed"]) for line in logged] == [("a", False), ("longer", False)]
    command, *output = (tmp_path / "logs" / "a.log").read_text().splitlines()
    assert command == f"$ python {tmp_path / 'a.py'} {tmp_path / 'a.txt'}"
    assert output[0] == "True", "the process was not forked from one that has the libraries"
    assert "UserWarning: of a library" in output[1]
    assert "bar" not in "".join(output)


@pytest.mark.parametrize("count", [3, 100])
def test_a_step_that_fails_prints_its_output(
    tmp_path: Path, console: Console, count: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of long output, the last lines, with the file that has all. Output of an earlier start is not repeated."""
    steps = [step(tmp_path, "fails", FAILS.format(count)), step(tmp_path, "next")]
    for _ in range(2):
        with pytest.raises(UserError, match="'Title of fails' failed with exit status 1"):
            run_steps(steps, tmp_path, console)
    assert printed(console) == []
    assert not (tmp_path / "next.txt").exists()
    log = tmp_path / "logs" / "fails.log"
    expected = [*map(str, range(count)), "error: no such thing."]
    assert log.read_text().splitlines()[1:] == [*expected, f"$ python {' '.join(steps[0].arguments)}", *expected]
    if count > LINES:
        expected = [f"… ({count + 1 - LINES} lines before: {log})", *expected[-LINES:]]
    assert capfd.readouterr().err.splitlines() == ["", *expected] * 2


def test_a_terminal_shows_the_title_while_a_step_runs(tmp_path: Path) -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=60, color_system=None, _environ={})
    run_steps([step(tmp_path, "a")], tmp_path, terminal)
    title, line = printed(terminal)
    assert title == "Title of a"
    assert line.startswith("\r\x1b[1A\x1b[2Ka "), "the title's line is not cleared before the result"


def test_progress_is_shown_on_the_terminal_alone(tmp_path: Path) -> None:
    """A bar appears on what was stderr when the process was forked, here a pseudo-terminal, and is cleared."""
    program = """
        import os, pty, select, termios
        from tqdm import tqdm
        from train.forked import keep_progress

        terminal, end = pty.openpty()
        termios.tcsetwinsize(end, (24, 60))
        kept = os.dup(2)
        os.dup2(end, 2)
        keep_progress()
        os.dup2(kept, 2)
        for _ in tqdm(range(3), desc="bar"):
            pass
        shown = b""
        while select.select([terminal], [], [], 1)[0]:
            shown += os.read(terminal, 1000)
        print(repr(shown))
    """
    output = run_program(program, folder=tmp_path)
    assert output.startswith("b'\\rbar: ")
    assert "0/3" in output
    assert output.strip().endswith(" \\r'"), "the bar stays"
    assert output.count("\n") == 1, "the bar is also in the log"
