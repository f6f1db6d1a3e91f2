"""One piece in a process of its own: `python -m eval.cost.gpu.worker MODULE:FUNCTION --output FILE --seconds 60`."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from eval.cost.gpu.work import Work


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status. An exception ends in a traceback, whose last line the report shows."""
    parser = argparse.ArgumentParser(prog="python -m eval.cost.gpu.worker", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("function", help="MODULE:FUNCTION")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args(argv)
    module, _, name = arguments.function.partition(":")
    device = torch.device(arguments.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    work = Work(arguments.output, device, arguments.tiny, arguments.seconds)
    getattr(importlib.import_module(module), name)(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
