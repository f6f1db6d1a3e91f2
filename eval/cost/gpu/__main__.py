"""Check this project on a GPU and measure its cost; write a report.

    python -m eval.cost.gpu --device cuda
    python -m eval.cost.gpu --device cuda --only encoders step --minutes 4
    python -m eval.cost.gpu --device cpu --tiny

Each piece runs in a process of its own and has a time limit. A piece that fails, hangs or lacks a package gets a line
in the report, and the others still run. Exits with status 1 if a piece failed. docs/gpu.md describes the pieces.
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
from sparse_vlm.command_line import CommandParser, add_device_argument
from sparse_vlm.errors import UserError, unknown_choice

GRACE = 10.0  # seconds beyond its time limit in which a piece may end by itself


def build_parser() -> CommandParser:
    """Make the parser of `python -m eval.cost.gpu`."""
    parser = CommandParser.of_module("eval.cost.gpu", __doc__)
    names = ", ".join(piece.name for piece in PIECES)
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"run only these pieces: {names}")
    parser.add_argument("--skip", nargs="+", default=[], metavar="NAME", help="leave out these pieces")
    parser.add_argument("--tiny", action="store_true", help="very small models, to check that everything runs")
    parser.add_argument(
        "--minutes",
        type=float,
        default=8,
        help="time limit for all pieces (default: 8)",
    )
    parser.add_argument(
        "--output_dir", type=Path, default=Path("runs/gpu"), help="folder for the report and logs (default: runs/gpu)"
    )
    add_device_argument(parser)
    return parser


def chosen(pieces: Sequence[Piece], only: Sequence[str] | None, skip: Sequence[str]) -> list[Piece]:
    """Select the pieces that `only` names (all if None), without those in `skip`."""
    names = [piece.name for piece in pieces]
    for name in (*(only or ()), *skip):
        if name not in names:
            raise unknown_choice("piece", name, names)
    return [piece for piece in pieces if piece.name in (only or names) and piece.name not in skip]


def run_piece(piece: Piece, folder: Path, device: str, tiny: bool, seconds: float) -> dict[str, Any]:
    """Run a piece within its time limit, and return its outcome and results."""
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
    """Run a command and return its exit status; None if it was killed, with all processes it started, at the limit."""
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
            if process.poll() is None:  # also if this process is interrupted
                os.killpg(process.pid, signal.SIGKILL)


def _last_line(log: Path) -> str:
    """Return the last line that a process printed, usually an exception."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "it printed nothing")


def run(arguments: argparse.Namespace, words: Sequence[str], pieces: Sequence[Piece] = PIECES) -> int:
    """Run the chosen pieces in order, write the report after each, and return the exit status."""
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
        "size": "tiny: the times are meaningless" if arguments.tiny else "real",
    }
    end = time.monotonic() + 60 * arguments.minutes
    results: list[dict[str, Any]] = []
    for piece in selected:
        results.append(run_piece(piece, folder, str(device), arguments.tiny, end - time.monotonic()))
        write_report(folder, about, results)
        last = results[-1]
        print(f"{piece.name}: {last['status']}, {last['seconds']:.0f} s {last['reason']}".rstrip(), flush=True)
    print(f"Wrote {folder / 'report.md'}, and report.json beside it.")
    checks = {piece.name for piece in selected if piece.is_check}
    bad = [
        each
        for each in results
        if each["status"] == "failed" or (each["status"] == "stopped" and each["name"] in checks)
    ]
    return int(bool(bad))


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run the pieces, and return the exit status."""
    words = sys.argv[1:] if argv is None else argv
    return build_parser().run(lambda arguments: run(arguments, words), words)


if __name__ == "__main__":
    sys.exit(main())
