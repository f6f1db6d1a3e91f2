"""Pieces that pass, fail, hang or crash, for tests/eval/cost/test_gpu.py. Each runs in its own process."""

import os
import time

from eval.cost.gpu.work import Work


def fine(work: Work) -> None:
    work.head("what", "value")
    work.row("device", str(work.device), device=str(work.device))
    work.row("a | b", "tiny" if work.tiny else "real")


def broken(work: Work) -> None:
    work.head("what", "value")
    work.row("before", "1")
    raise ValueError("the driver is too old")


def half_broken(work: Work) -> None:
    def fails() -> None:
        raise RuntimeError("Triton found no compiler")

    work.head("what")
    work.attempt("first", fails)
    work.attempt("second", lambda: work.row("second"))
    work.attempt("third", lambda: work.row("third"), needs=1e9)


def hangs(work: Work) -> None:
    work.head("what")
    work.row("before")
    time.sleep(600)


def crashes(work: Work) -> None:
    os.abort()
