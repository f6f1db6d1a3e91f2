"""Start `python …` without the ten seconds of importing torch and transformers: fork a process that has imported them.

For programs that start many of the project's commands one after another. Based on multiprocessing's forkserver.
"""

import io
import multiprocessing
import os
import runpy
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partialmethod
from multiprocessing.process import BaseProcess
from pathlib import Path

LINES = 60  # of a failed command's output


def fork_python(
    words: Sequence[str],
    environment: Mapping[str, str] | None = None,
    printed: Path | None = None,
    threads: int | None = None,
    show_progress: bool = False,
) -> BaseProcess:
    """Start `python WORDS` in the current folder.

    Args:
        words: `-m MODULE …` or `FILE …`.
        environment: variables to add. Those that libraries read at import time have no effect.
        printed: file to append its output to; None: this process' output.
        threads: number of PyTorch threads; None: PyTorch's choice.
        show_progress: keep tqdm's bars out of `printed`. They appear on this process' terminal, and vanish when they
            end; if stderr is not a terminal, there are none.

    Returns:
        The started process. `join()` waits for it, and `exitcode` is then its exit status.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train.preloaded"])
    arguments = (list(words), dict(environment or {}), os.getcwd(), printed, threads, show_progress)
    process = context.Process(target=_run, args=arguments)
    process.start()
    return process


def run_logged(words: Sequence[str], log: Path) -> int:
    """Run `python WORDS`, append the command and its output to `log`, and return the exit status.

    Progress bars appear on the terminal instead, if there is one. The output of a command that fails is printed to
    stderr as well.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {shlex.join(['python', *words])}\n")
        start = file.tell()
    process = fork_python(words, printed=log, show_progress=True)
    process.join()
    if process.exitcode:
        output = log.read_bytes()[start:].decode(errors="replace").splitlines()
        earlier = [f"… ({len(output) - LINES} lines before: {log})"] if len(output) > LINES else []
        print("", *earlier, *output[-LINES:], sep="\n", file=sys.stderr)
    return process.exitcode or 0


def _run(
    words: list[str],
    environment: Mapping[str, str],
    folder: str,
    printed: Path | None,
    threads: int | None,
    show_progress: bool,
) -> None:
    multiprocessing.set_start_method(None, force=True)  # the default, not forkserver: workers would import all again
    os.environ.update(environment)
    os.chdir(folder)
    if show_progress:
        keep_progress()
    if printed is not None:
        with printed.open("a") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
        assert isinstance(sys.stdout, io.TextIOWrapper)
        sys.stdout.reconfigure(line_buffering=True)  # for readers of the file
    if threads is not None:
        import torch  # imported here already, but not in the process that starts the server

        torch.set_num_threads(threads)
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def keep_progress() -> None:
    """Let tqdm write to what is stderr now, if it is a terminal, wherever stderr leads later."""
    from tqdm import tqdm

    kept = os.dup(2) if os.isatty(2) else os.open(os.devnull, os.O_WRONLY)
    # leave=False: a bar that has ended would move the lines of the process that waits
    default = partialmethod(tqdm.__init__, file=os.fdopen(kept, "w"), leave=False, dynamic_ncols=True)
    tqdm.__init__ = default  # type: ignore[method-assign, assignment]
