"""Start `python …` without the ten seconds of importing torch and transformers: fork a process that has imported them.

For programs that start many of the project's commands one after another. Based on multiprocessing's forkserver.
"""

import io
import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

PRELOADED = ["train.libraries"]  # none of the project's other modules: a command behaves as in a fresh interpreter


def fork_python(
    words: Sequence[str],
    environment: Mapping[str, str] | None = None,
    printed: Path | None = None,
    threads: int | None = None,
) -> BaseProcess:
    """Start `python WORDS` in the current folder.

    Args:
        words: `-m MODULE …` or `FILE …`.
        environment: variables to add. Those that libraries read at import time have no effect.
        printed: file for its output; None: this process' output.
        threads: number of PyTorch threads; None: PyTorch's choice.

    Returns:
        The started process. `join()` waits for it, and `exitcode` is then its exit status.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_run, args=(list(words), dict(environment or {}), os.getcwd(), printed, threads))
    process.start()
    return process


def _run(
    words: list[str], environment: Mapping[str, str], folder: str, printed: Path | None, threads: int | None
) -> None:
    multiprocessing.set_start_method(None, force=True)  # the default, not forkserver: workers would import all again
    os.environ.update(environment)
    os.chdir(folder)
    if printed is not None:
        with printed.open("w") as file:
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
