"""Checks and measurements on a GPU, with a report: `python -m eval.cost.gpu`; docs/gpu.md says what is in it.

Each piece runs in a process of its own, for as long as its box of time allows: one that fails, hangs or needs a package
that is not installed is a line in the report, and the others go on. Exit status 1: something failed.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from eval.cost.gpu.pieces import PIECES, ROOT, Piece, missing
from eval.cost.gpu.report import write_report
from sparse_vlm.device_arguments import add_device_argument
from sparse_vlm.errors import UserError, exit_with_sentence, unknown_choice

GRACE = 10.0  # seconds beyond its box in which a piece may end by itself


def build_parser() -> argparse.ArgumentParser:
    """The arguments of `python -m eval.cost.gpu`."""
    parser = argparse.ArgumentParser(prog="python -m eval.cost.gpu", description=(__doc__ or "").splitlines()[0])
    names = ", ".join(piece.name for piece in PIECES)
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"these pieces alone: {names}")
    parser.add_argument("--skip", nargs="+", default=[], metavar="NAME", help="all but these")
    parser.add_argument("--tiny", action="store_true", help="very small models: to see that everything runs")
    parser.add_argument("--minutes", type=float, default=8, help="for everything; what does not fit in is left out")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/gpu"), help="for report.md, report.json and logs")
    add_device_argument(parser)
    return parser


def chosen(pieces: Sequence[Piece], only: Sequence[str] | None, skip: Sequence[str]) -> list[Piece]:
    """The pieces of these names.

    Raises:
        UserError: an unknown name.
    """
    names = [piece.name for piece in pieces]
    for name in (*(only or ()), *skip):
        if name not in names:
            raise unknown_choice("piece", name, names)
    return [piece for piece in pieces if piece.name in (only or names) and piece.name not in skip]


def run_piece(piece: Piece, folder: Path, device: str, tiny: bool, seconds: float) -> dict[str, Any]:
    """Runs a piece within its box of time; what it has left, and what became of it."""
    lacking = missing(piece.needs)
    if lacking:
        return _outcome(piece, "left out", f"it needs {lacking}", 0)
    box = min(piece.seconds, seconds)
    if box < min(15, piece.seconds):
        return _outcome(piece, "left out", "there was no time left for it (--minutes)", 0)
    output, log = folder / f"{piece.name}.json", folder / f"{piece.name}.log"
    output.unlink(missing_ok=True)
    words = [sys.executable, "-m", "eval.cost.gpu.worker", piece.function, "--output", str(output), "--device", device]
    words += ["--seconds", str(box), *(["--tiny"] if tiny else [])]
    began = time.monotonic()
    status = _run_boxed(words, log, box + GRACE)
    spent = time.monotonic() - began
    result = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
    if status is None:
        reason = f"it was stopped after {spent:.0f} seconds; what it had done by then is here"
        return _outcome(piece, "stopped", reason, spent) | result
    if status or result.get("failures"):
        failures = result.get("failures") or [_last_line(log)]
        return _outcome(piece, "failed", failures[0], spent) | result
    return _outcome(piece, "passed", "", spent) | result


def _outcome(piece: Piece, status: str, reason: str, seconds: float) -> dict[str, Any]:
    return {"name": piece.name, "title": piece.title, "status": status, "reason": reason, "seconds": seconds}


def _run_boxed(words: Sequence[str], log: Path, seconds: float) -> int | None:
    """A command's exit status; None: it took longer, and was killed with all that it had started."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    with (
        log.open("wb") as printed,
        subprocess.Popen(
            words, cwd=ROOT, env=environment, stdout=printed, stderr=subprocess.STDOUT, start_new_session=True
        ) as process,
    ):
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:  # also where we are interrupted ourselves
                os.killpg(process.pid, signal.SIGKILL)


def _last_line(log: Path) -> str:
    """What a process that broke off said last; usually an exception."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "it said nothing")


def run(arguments: argparse.Namespace, words: Sequence[str], pieces: Sequence[Piece] = PIECES) -> int:
    """Runs the chosen pieces one after the other, and writes the report after each; the exit status.

    Raises:
        UserError: an unknown piece or device, or no time.
    """
    selected = chosen(pieces, arguments.only, arguments.skip)
    if arguments.minutes <= 0:
        raise UserError(f"--minutes must be positive, got {arguments.minutes:g}.")
    from sparse_vlm.devices import choose_device  # imports torch

    device = choose_device(arguments.device)
    folder = arguments.output_dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "command": shlex.join(["python", "-m", "eval.cost.gpu", *words]),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "device": str(device),
        "size": "tiny: the times mean nothing" if arguments.tiny else "real",
    }
    end = time.monotonic() + 60 * arguments.minutes
    results: list[dict[str, Any]] = []
    for piece in selected:
        results.append(run_piece(piece, folder, str(device), arguments.tiny, end - time.monotonic()))
        write_report(folder, about, results)
        last = results[-1]
        print(f"{piece.name}: {last['status']}, {last['seconds']:.0f} s {last['reason']}".rstrip(), flush=True)
    print(f"Written: {folder / 'report.md'}, and report.json beside it.")
    checks = {piece.name for piece in selected if piece.is_check}
    bad = [
        each
        for each in results
        if each["status"] == "failed" or (each["status"] == "stopped" and each["name"] in checks)
    ]
    return int(bool(bad))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    arguments = build_parser().parse_args(words)
    return exit_with_sentence(lambda: run(arguments, words))


if __name__ == "__main__":
    sys.exit(main())
