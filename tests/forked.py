"""Commands in forked processes, on one thread, and what became of them."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from train.forked import fork_python

ROOT = Path(__file__).resolve().parents[1]


def run_together(
    words: Sequence[str], environments: Sequence[Mapping[str, str]], printed: Path, exitcode: int = 0
) -> str:
    """Runs `python WORDS` in each of the environments, all at the same time; each must end with that exit status.

    Args:
        words: `-m MODULE …` or `FILE …`.
        environments: of one process each.
        printed: the first one's output; those of the others lie beside it.
        exitcode: the expected one.

    Returns:
        What the first one printed.
    """
    files = [printed, *(printed.with_suffix(f".{rank}.txt") for rank in range(1, len(environments)))]
    processes = [fork_python(words, more, file, threads=1) for more, file in zip(environments, files, strict=True)]
    for process, file in zip(processes, files, strict=True):
        process.join(timeout=900)
        process.kill()
        assert process.exitcode == exitcode, file.read_text()[-6000:]
    return printed.read_text()


def run_program(program: str, *arguments: str, folder: Path, exitcode: int = 0) -> str:
    """`run_together` for one process and the text of a program, which is kept in `folder` as what it printed is."""
    file = folder / "program.py"
    file.write_text(textwrap.dedent(program))
    return run_together([str(file), *arguments], [{}], folder / "printed.txt", exitcode)
