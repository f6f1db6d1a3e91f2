"""`python …` without the ten seconds of importing torch, transformers and the like: forked from a process that has."""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ["datasets", "peft", "timm", "transformers.trainer"]  # none of ours, nor LLaVA: they are what is tested


def fork_python(words: Sequence[str], environment: Mapping[str, str], printed: Path) -> BaseProcess:
    """Starts what `python WORDS` starts in the project's root, on one thread.

    Args:
        words: `-m MODULE …` or `FILE …`.
        environment: variables beside this process' own.
        printed: a file for what it prints.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    process = context.Process(target=_run, args=(list(words), dict(environment), printed))
    process.start()
    return process


def check(process: BaseProcess, printed: Path) -> None:
    """Waits for the end, which must be a good one."""
    process.join(timeout=900)
    process.kill()
    assert process.exitcode == 0, printed.read_text()[-6000:]


def _run(words: list[str], environment: dict[str, str], printed: Path) -> None:
    import torch

    os.environ.update(environment)
    os.chdir(ROOT)
    with printed.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    torch.set_num_threads(1)
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
