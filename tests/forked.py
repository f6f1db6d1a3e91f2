"""Run commands in forked processes with one thread each."""

import re
import textwrap
import time
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from train.forked import fork_python

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 900  # seconds, for machines with other work


def run_together(
    words: Sequence[str], environments: Sequence[Mapping[str, str]], printed: Path, exitcode: int = 0
) -> str:
    """Run `python WORDS` in all environments at the same time and check the exit status of each.

    Args:
        words: `-m MODULE …` or `FILE …`.
        environments: one process for each.
        printed: file for the first one's output; the others write next to it.
        exitcode: the expected exit status.

    Returns:
        The output of the first process.
    """
    files = [printed, *(printed.with_suffix(f".{rank}.txt") for rank in range(1, len(environments)))]
    for file in files:
        file.unlink(missing_ok=True)
    processes = [fork_python(words, more, file, threads=1) for more, file in zip(environments, files, strict=True)]
    for process, file in zip(processes, files, strict=True):
        process.join(PATIENCE)
        process.kill()
        assert process.exitcode == exitcode, file.read_text()[-6000:]
    return printed.read_text()


def run_program(program: str, *arguments: str, folder: Path, exitcode: int = 0) -> str:
    """Run the text of a program in one process; program and output are kept in `folder`."""
    file = folder / "program.py"
    file.write_text(textwrap.dedent(program))
    return run_together([str(file), *arguments], [{}], folder / "printed.txt", exitcode)


def wait_for_output(process: BaseProcess, printed: Path, pattern: str) -> str:
    """Wait until what a forked process has `printed` matches the pattern; return the match."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = re.search(pattern, printed.read_text()) if printed.exists() else None
        if found:
            return found[0]
        assert process.is_alive(), printed.read_text()
        time.sleep(0.1)
    raise AssertionError(f"The output never matches {pattern}: {printed.read_text()}")
