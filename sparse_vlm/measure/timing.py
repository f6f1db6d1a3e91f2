"""Stopwatch, meter of arithmetic, and description of the machine, for everything that measures cost."""

import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from sparse_vlm.devices import device_name, synchronize
from sparse_vlm.errors import UserError

Run = Callable[[], object]


def require_positive(**values: int | Sequence[int]) -> None:
    """Checks arguments that count something, each under its own name.

    Raises:
        UserError: one of them is below 1.
    """
    for name, value in values.items():
        for number in (value,) if isinstance(value, int) else value:
            if number < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {number}.")


def machine(device: torch.device) -> dict[str, str | int]:
    """What was measured on: processor, its cores, the GPU if there is one in use, torch's version."""
    described: dict[str, str | int] = {"cpu": _processor(), "cores": os.cpu_count() or 0}
    if device.type != "cpu":
        described["gpu"] = device_name(device)
    return described | {"torch": torch.__version__}


def _processor() -> str:
    """Linux knows the model's name; elsewhere `platform` has to do."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def seconds_of(run: Run, device: torch.device) -> float:
    """How long `run` takes, until its last kernel has ended."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def take_turns(runs: Sequence[Run], repeats: int, device: torch.device) -> list[list[float]]:
    """Seconds of every run, in the order of `runs`: all take turns, forth and back, so that a change of the machine's
    load meets all of them.

    Args:
        runs: what to time.
        repeats: recorded rounds, after unrecorded ones: one on a CPU, three on a GPU (kernels are chosen, graphs
            recorded).
        device: where they run.
    """
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(1 if device.type == "cpu" else 3):
        for run in runs:
            seconds_of(run, device)
    for number in range(repeats):
        for index in range(len(runs))[:: -1 if number % 2 else 1]:
            seconds[index].append(seconds_of(runs[index], device))
    return seconds


def matmul(dtype: torch.dtype, device: torch.device) -> tuple[Run, float]:
    """A product of two square matrices, and its floating-point operations: what the hardware can do at best."""
    side = 1024 if device.type == "cpu" else 8192
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return lambda: left @ right, 2.0 * side**3


def gmacs_of(run: Run) -> float:
    """1e9 multiply-accumulates, counted while it runs."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 2e9
