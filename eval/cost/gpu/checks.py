"""The pieces that compare: tests of tests/gpu, run by pytest in the piece's process, each in the report as it ends."""

import os
from typing import Any

from eval.cost.gpu.pieces import ROOT
from eval.cost.gpu.work import Work

FOLDER = ROOT / "tests" / "gpu"


class _Recorder:
    """A plugin of pytest that adds a row for each test."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Called by pytest: once for the set-up, the test itself and what follows it."""
        if report.when != "call" and report.passed:
            return
        name = report.nodeid.rpartition("::")[2]
        told = _told(report)
        self._work.row(name, report.outcome, f"{report.duration:.1f}", told, test=report.nodeid, outcome=report.outcome)
        if report.failed:
            self._work.fail(f"{name}: {told}")

    def pytest_collectreport(self, report: Any) -> None:
        """Called by pytest: a file that cannot be imported has no tests to report."""
        if report.failed:
            self._work.fail(f"{report.nodeid}: {str(report.longrepr).strip().splitlines()[-1]}")


def _told(report: Any) -> str:
    """Why a test failed or was skipped, on one line."""
    if report.skipped:
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        return " ".join(str(crash.message if crash else report.longrepr).split())[:300]
    return ""


def _run(work: Work, file: str) -> None:
    import pytest

    work.head("check", "outcome", "seconds", "why")
    # another machine has other versions, whose warnings are not errors of ours
    words = [str(FOLDER / file), "-q", "-o", "filterwarnings=default", "--rootdir", str(ROOT)]
    os.environ["HF_HUB_OFFLINE"] = "1"
    pytest.main([*words, "-m", "gpu" if work.device.type == "cuda" else "not gpu"], plugins=[_Recorder(work)])
    if not work.rows:
        work.fail(f"{file}: no test was run.")


def encoder(work: Work) -> None:
    """The authors' outputs, in float32 and bf16."""
    _run(work, "test_encoder.py")


def graphs(work: Work) -> None:
    """Replays give what plain calls give."""
    _run(work, "test_graphs.py")


def answers(work: Work) -> None:
    """Answers are those of the CPU."""
    _run(work, "test_answers.py")


def bootstrap(work: Work) -> None:
    """Losses are those of the CPU; a run that was interrupted goes on with the same ones."""
    _run(work, "test_bootstrap.py")


def stages(work: Work) -> None:
    """The same for align and instruct."""
    _run(work, "test_stages.py")


def qlora(work: Work) -> None:
    """The same for a language model in 4 bits."""
    _run(work, "test_qlora.py")


def zero2(work: Work) -> None:
    """The same under DeepSpeed."""
    _run(work, "test_zero2.py")


def packing(work: Work) -> None:
    """Packed samples with flash attention give what padded ones give."""
    _run(work, "test_packing.py")
