"""Stopwatch, meters of memory and arithmetic, and description of the machine, for everything that measures cost."""

import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.autograd.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from sparse_vlm.errors import UserError, unknown_choice

Run = Callable[[], object]


def open_device(name: str) -> torch.device:
    """The device of that name, "cpu" or "cuda" (or "cuda:1").

    Raises:
        UserError: it is not there, or of another kind.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise unknown_choice("--device", name, ("cpu", "cuda")) from None
    if device.type not in ("cpu", "cuda"):
        raise unknown_choice("--device", name, ("cpu", "cuda"))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"There is no {name}: torch sees {torch.cuda.device_count()} CUDA devices. Use --device cpu.")
    return device


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
    described: dict[str, str | int] = {"cpu": _processor(), "cores": psutil.cpu_count() or 0}
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
    return described | {"torch": torch.__version__}


def _processor() -> str:
    """Linux knows the model's name; elsewhere `platform` has to do."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def seconds_of(run: Run, device: torch.device) -> float:
    """How long `run` takes, until its last kernel has ended."""
    finish(device)
    start = time.perf_counter()
    run()
    finish(device)
    return time.perf_counter() - start


def finish(device: torch.device) -> None:
    """Waits until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
    for _ in range(3 if device.type == "cuda" else 1):
        for run in runs:
            seconds_of(run, device)
    for number in range(repeats):
        for index in range(len(runs))[:: -1 if number % 2 else 1]:
            seconds[index].append(seconds_of(runs[index], device))
    return seconds


def matmul(dtype: torch.dtype, device: torch.device) -> tuple[Run, float]:
    """A product of two square matrices, and its floating-point operations: what the hardware can do at best."""
    side = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return lambda: left @ right, 2.0 * side**3


def gmacs_of(run: Run) -> float:
    """1e9 multiply-accumulates, counted while it runs."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 2e9


def peak_bytes(run: Run, device: torch.device) -> int:
    """The most bytes that `run` has beyond what was allocated before it.

    Counted by torch's allocator: weights that exist already are not in it, and neither is what libraries allocate
    behind torch's back.
    """
    if device.type == "cuda":
        finish(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        finish(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler tells on stderr when it starts and stops
    with profile(profile_memory=True) as recorded:
        run()
    results: Any = recorded.kineto_results
    held = peak = 0
    for event in results.events():  # in the order of time
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak
