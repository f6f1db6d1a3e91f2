"""Pieces that check results: they run the tests of tests/gpu with pytest, and report each test when it ends."""

import os
from typing import Any

from eval.cost.gpu.pieces import ROOT
from eval.cost.gpu.work import Work

FOLDER = ROOT / "tests" / "gpu"


class _Recorder:
    """Pytest plugin that adds a row for each test."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Called by pytest for the set-up, the call and the tear-down of each test."""
        if report.when != "call" and report.passed:
            return
        name = report.nodeid.rpartition("::")[2]
        told = _told(report)
        self._work.row(name, report.outcome, f"{report.duration:.1f}", told, test=report.nodeid, outcome=report.outcome)
        if report.failed:
            self._work.fail(f"{name}: {told}")

    def pytest_collectreport(self, report: Any) -> None:
        """Called by pytest; reports files that cannot be imported."""
        if report.failed:
            self._work.fail(f"{report.nodeid}: {str(report.longrepr).strip().splitlines()[-1]}")


def _told(report: Any) -> str:
    """Say on one line why a test failed or was skipped."""
    if report.skipped:
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        return " ".join(str(crash.message if crash else report.longrepr).split())[:300]
    return ""


def _run(work: Work, file: str) -> None:
    import pytest

    work.head("check", "outcome", "seconds", "why")
    # other machines have other versions of the packages, whose warnings are not our errors
    words = [str(FOLDER / file), "-q", "-o", "filterwarnings=default", "--rootdir", str(ROOT)]
    os.environ["HF_HUB_OFFLINE"] = "1"
    pytest.main([*words, "-m", "gpu" if work.device.type == "cuda" else "not gpu"], plugins=[_Recorder(work)])
    if not work.rows:
        work.fail(f"{file}: no test ran.")


def encoder(work: Work) -> None:
    """Compare the encoder with the authors' outputs, in float32 and bf16."""
    _run(work, "test_encoder.py")


def graphs(work: Work) -> None:
    """Compare CUDA graphs with plain calls."""
    _run(work, "test_graphs.py")


def answers(work: Work) -> None:
    """Compare answers with the CPU's."""
    _run(work, "test_answers.py")


def bootstrap(work: Work) -> None:
    """Compare a bootstrap's losses with the CPU's, and those of a resumed run with an uninterrupted one."""
    _run(work, "test_bootstrap.py")


def stages(work: Work) -> None:
    """Compare the losses of align and instruct with the CPU's."""
    _run(work, "test_stages.py")


def qlora(work: Work) -> None:
    """Compare the losses of instruct with 4-bit weights with the CPU's."""
    _run(work, "test_qlora.py")


def zero2(work: Work) -> None:
    """Compare the losses under ZeRO-2 with those without it."""
    _run(work, "test_zero2.py")


def packing(work: Work) -> None:
    """Compare packed samples with flash attention with padded ones."""
    _run(work, "test_packing.py")
