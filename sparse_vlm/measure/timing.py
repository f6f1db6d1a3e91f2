"""Timing, operation counts and a description of the machine, for everything that measures cost."""

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
    """Check options that count something; each is passed under its own name.

    Raises:
        UserError: a value is below 1.
    """
    for name, value in values.items():
        for number in (value,) if isinstance(value, int) else value:
            if number < 1:
                raise UserError(f"--{name} must be at least 1, got {number}.")


def machine(device: torch.device) -> dict[str, str | int]:
    """Describe the machine: processor, cores, the GPU if `device` is one, and torch's version."""
    described: dict[str, str | int] = {"cpu": _processor(), "cores": os.cpu_count() or 0}
    if device.type != "cpu":
        described["gpu"] = device_name(device)
    return described | {"torch": torch.__version__}


def _processor() -> str:
    """Model name of the processor: from /proc/cpuinfo on Linux, else from `platform`."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def clock(device: torch.device) -> float:
    """Wait until `device` has finished its work, then read a monotonic clock, in seconds."""
    synchronize(device)
    return time.perf_counter()


def seconds_of(run: Run, device: torch.device) -> float:
    """Time one call of `run`, until its last kernel has finished."""
    start = clock(device)
    run()
    return clock(device) - start


def turns(count: int, rounds: int) -> list[tuple[int, int]]:
    """Order in which `count` contestants take turns, so that a change of the machine's load affects all of them.

    Returns:
        (round, contestant) pairs; contestants go first to last in even rounds and last to first in odd ones.
    """
    return [(number, index) for number in range(rounds) for index in range(count)[:: -1 if number % 2 else 1]]


def take_turns(runs: Sequence[Run], repeats: int, device: torch.device) -> list[list[float]]:
    """Time all runs in turns, see `turns`.

    Args:
        runs: the calls to time.
        repeats: recorded rounds. Warm-up rounds come first and are not recorded: one on a CPU; three on a GPU, where
            kernels are chosen and graphs captured.
        device: the device that the runs use.

    Returns:
        Seconds of every recorded round of each run, in the order of `runs`.
    """
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(1 if device.type == "cpu" else 3):
        for run in runs:
            seconds_of(run, device)
    for _, index in turns(len(runs), repeats):
        seconds[index].append(seconds_of(runs[index], device))
    return seconds


def matmul(dtype: torch.dtype, device: torch.device) -> tuple[Run, float]:
    """Make a product of two square matrices, as a measure of the hardware's peak speed.

    Returns:
        The product as a call, and its number of floating-point operations.
    """
    side = 1024 if device.type == "cpu" else 8192
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return lambda: left @ right, 2.0 * side**3


def gmacs_of(run: Run) -> float:
    """Call `run` once and count its multiply-accumulates, in units of 1e9."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 2e9
