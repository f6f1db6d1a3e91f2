"""`python -m eval.cost.gpu --tiny` on the CPU: pieces that pass, fail, hang or lack a package, and the report."""

import importlib
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from eval.cost.gpu import __main__ as gpu
from eval.cost.gpu.pieces import PIECES, Piece, missing
from eval.cost.gpu.work import Work
from tests.forking_python import forking_python


def piece(name: str, *needs: str, seconds: int = 30) -> Piece:
    return Piece(name, name.capitalize(), f"tests.eval.cost.gpu_pieces:{name}", seconds, needs)


def run(folder: Path, pieces: list[Piece], *words: str) -> tuple[int, list[dict[str, Any]]]:
    """Run pieces; return the exit status and the report's entry for each piece."""
    words = ("--device", "cpu", "--tiny", "--output_dir", str(folder), *words)
    status = gpu.run(gpu.build_parser().parse_args(words), words, pieces)
    return status, json.loads((folder / "report.json").read_text())["pieces"]


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fork the processes of pieces, which then import nothing again."""
    with TemporaryDirectory() as folder, forking_python(Path(folder)) as python:
        monkeypatch.setattr("sys.executable", str(python))
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_a_failing_piece_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "GRACE", 4.0)
    names = ("broken", "half_broken", "crashes", "fine")
    pieces = [piece("fine", "no-such-package"), *map(piece, names), piece("hangs", seconds=8)]
    status, results = run(tmp_path, pieces)
    assert status == 1
    assert [(each["name"], each["status"]) for each in results] == [
        ("fine", "left out"),
        ("broken", "failed"),
        ("half_broken", "failed"),
        ("crashes", "failed"),
        ("fine", "passed"),
        ("hangs", "stopped"),
    ]
    absent, broken, half, crashed, fine, hung = results
    assert absent["reason"] == "it needs no-such-package (not installed)"
    assert broken["reason"] == "ValueError: the driver is too old"
    assert half["reason"] == "first: Triton found no compiler"
    assert half["notes"] == ["third: left out, there was no time for it."]
    assert crashed["reason"]
    assert [each["rows"] for each in (broken, half, hung)] == [[["before", "1"]], [["second"]], [["before"]]]
    assert fine["values"][0] == {"device": "cpu"}
    assert hung["reason"].startswith("it was stopped after ")
    text = (tmp_path / "report.md").read_text()
    assert "| a \\| b | tiny |" in text
    assert "| broken | failed |" in text
    assert "- command: python -m eval.cost.gpu --device cpu --tiny" in text


def test_processes_started_by_a_hanging_piece_are_stopped(tmp_path: Path) -> None:
    words = ["bash", "-c", "sleep 600 & echo $!; wait"]
    assert gpu._run_boxed(words, tmp_path / "log", 0.5) is None
    process = int((tmp_path / "log").read_text())
    for _ in range(100):
        state = Path(f"/proc/{process}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    pytest.fail(f"process {process} still runs")


def test_a_stopped_table_passes_and_a_stopped_check_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = {"name": "hangs", "title": "", "status": "stopped", "reason": "", "seconds": 1.0}
    monkeypatch.setattr(gpu, "run_piece", lambda *_: outcome)
    assert run(tmp_path, [piece("hangs")])[0] == 0
    assert run(tmp_path, [piece("hangs", "test:pytest")])[0] == 1


def test_pieces_are_left_out_when_no_time_is_left(tmp_path: Path) -> None:
    status, (result,) = run(tmp_path, [piece("fine")], "--minutes", "0.01")
    assert (status, result["status"]) == (0, "left out")
    assert "there was no time left" in result["reason"]


def test_packages_need_the_versions_of_pyproject(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing(("vlm:transformers", "train:accelerate", "test:pytest", "torch")) == ""
    monkeypatch.setattr("importlib.metadata.version", lambda name: "4.40.0")
    assert missing(("transformers", "train:accelerate")) == ""
    assert missing(("vlm:transformers",)).startswith("transformers")
    assert missing(("vlm:transformers",)).endswith("(found 4.40.0)")


def test_pieces_can_be_chosen() -> None:
    names = [each.name for each in PIECES]
    assert len(set(names)) == len(names)
    assert [each.name for each in gpu.chosen(PIECES, ["step", "encoder"], ["step"])] == ["encoder"]
    assert [each.name for each in gpu.chosen(PIECES, None, names[1:])] == names[:1]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--only", "encoder", "encodr"], "Unknown piece 'encodr'. Did you mean 'encoder'"),
        (["--skip", "tables"], "Unknown piece 'tables'"),
        (["--minutes", "0"], "--minutes must be positive, got 0."),
        (["--device", "cuda:99"], "There is no cuda:99"),
    ],
)
def test_bad_arguments(words: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([*words, "--output_dir", str(tmp_path)]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def result_of(name: str, folder: Path) -> dict[str, Any]:
    """Run a piece in this process at its tiny size, and return its results."""
    module, _, function = next(each.function for each in PIECES if each.name == name).partition(":")
    getattr(importlib.import_module(module), function)(Work(folder / "out.json", torch.device("cpu"), True, 300))
    return json.loads((folder / "out.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rows"), [("encoders", 4), ("prefill", 6), ("step", 12), ("compiled", 1)])
def test_tables_are_complete(name: str, rows: int, tmp_path: Path) -> None:
    result = result_of(name, tmp_path)
    assert result["failures"] == result["notes"] == []
    assert len(result["rows"]) == len(result["values"]) == rows
    assert {len(row) for row in result["rows"]} == {len(result["heading"])}
    assert all(min(values["seconds"]) > 0 for values in result["values"])


def test_the_machine_is_described(tmp_path: Path) -> None:
    found = dict(result_of("machine", tmp_path)["rows"])
    assert found["torch"] == torch.__version__
    assert {"transformers", "timm", "python", "cpu", "matrix product, bfloat16"} <= found.keys()


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_a_check_runs_its_tests(tmp_path: Path) -> None:
    """The check runs in its own process, because pytest does not run inside pytest."""
    # its limit is for a GPU that nobody shares; this machine may be busy
    check = replace(next(each for each in PIECES if each.name == "encoder"), seconds=1000)
    status, (result,) = run(tmp_path, [check])
    assert (status, result["status"]) == (0, "passed")
    assert len(result["rows"]) == 6
    assert all(row[1] == "passed" for row in result["rows"])


def test_every_check_has_its_tests() -> None:
    folder = Path(__file__).parents[2] / "gpu"
    files = {file.stem.removeprefix("test_") for file in folder.glob("test_*.py")}
    assert files == {each.name for each in PIECES if each.is_check}
