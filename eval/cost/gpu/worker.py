"""Run one piece of `python -m eval.cost.gpu` in this process.

python -m eval.cost.gpu.worker eval.cost.gpu.tables:machine --output machine.json --device cpu --seconds 60
"""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from eval.cost.gpu.work import Work
from sparse_vlm.command_line import CommandParser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the piece and return 0. An exception ends in a traceback, whose last line the report shows."""
    parser = CommandParser.of_module("eval.cost.gpu.worker", __doc__)
    parser.add_argument("function", help="MODULE:FUNCTION of the piece")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--device", default="cuda", help="device to measure (default: cuda)")
    parser.add_argument("--seconds", type=float, required=True, help="time limit of the piece")
    parser.add_argument("--tiny", action="store_true", help="very small models, to check that everything runs")
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
