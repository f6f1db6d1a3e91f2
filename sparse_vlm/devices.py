"""Choice of device and dtype, and memory measurements, on any accelerator of torch (CUDA, MPS, XPU)."""

import logging
import os
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.autograd.profiler import profile

from sparse_vlm.dtypes import DTYPES, name_of
from sparse_vlm.errors import UserError, unknown_choice

KINDS = ("cpu", "cuda", "mps", "xpu")
METERED = ("cuda", "xpu")  # torch.cuda and torch.xpu name their memory functions alike
GAIN = 1.5  # bfloat16 must be this many times as fast as float32 on a CPU: it also costs conversions and accuracy
logger = logging.getLogger(__name__)


def devices_here() -> list[torch.device]:
    """List every device that torch sees: the CPU, then the accelerators."""
    cpu = torch.device("cpu")
    if not torch.accelerator.is_available():
        return [cpu]
    accelerator = torch.accelerator.current_accelerator()
    assert accelerator is not None
    return [cpu, *(torch.device(accelerator.type, index) for index in range(torch.accelerator.device_count()))]


def choose_device(name: str = "auto") -> torch.device:
    """Choose a device by name; the result has an index unless it is the CPU.

    Args:
        name: "auto" for the first accelerator, or the CPU if there is none; or "cpu", "cuda", "cuda:1", "mps" …
    """
    here = devices_here()
    if name == "auto":
        return here[:2][-1]
    try:
        device = torch.device(name)
    except RuntimeError:
        raise unknown_choice("--device", name, ("auto", *KINDS)) from None
    if device.type not in (*KINDS, here[-1].type):
        raise unknown_choice("--device", name, ("auto", *KINDS))
    for known in here:
        if device.type == known.type and (device.index or 0) == (known.index or 0):
            return known
    seen = ", ".join(map(str, here))
    raise UserError(f"There is no {name}: torch sees {seen}. Use --device auto, or one of these.")


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Choose a dtype by name. The choice of "auto" is logged.

    Args:
        name: a key of `DTYPES`, or "auto" for bfloat16 where `has_bfloat16`, else float32.
        device: where the model will compute.
    """
    if name == "auto":
        dtype = torch.bfloat16 if has_bfloat16(device) else torch.float32
        logger.info("Computing in %s on %s.", name_of(dtype), device)
        return dtype
    if name not in DTYPES:
        raise unknown_choice("--dtype", name, ("auto", *DTYPES))
    return DTYPES[name]


def has_bfloat16(device: torch.device) -> bool:
    """Check whether a device computes in bfloat16 natively, without emulation; a CPU's speed is measured."""
    if device.type == "cpu":
        return _cpu_gains_by_bfloat16()
    if device.type == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)
    if device.type not in METERED:
        return False
    module = torch.get_device_module(device)
    with module.device(device):
        return module.is_bf16_supported(including_emulation=False)


@cache
def _cpu_gains_by_bfloat16() -> bool:
    """Time a small matrix product in both dtypes, in turns (10 to 60 ms).

    The instruction sets do not tell: a processor with AVX512-BF16 but without AMX multiplies bfloat16 four times as
    fast as float32, or more slowly than it, and a virtual machine or ONEDNN_MAX_CPU_ISA can hide what it has.
    """
    least = dict.fromkeys((torch.float32, torch.bfloat16), float("inf"))
    with torch.inference_mode():
        products = {dtype: (torch.zeros(128, 512, dtype=dtype), torch.zeros(512, 512, dtype=dtype)) for dtype in least}
        for _ in range(6):
            for dtype, (rows, weight) in products.items():
                start = time.perf_counter()
                torch.nn.functional.linear(rows, weight)
                least[dtype] = min(least[dtype], time.perf_counter() - start)
    return least[torch.float32] > GAIN * least[torch.bfloat16]


def device_name(device: torch.device) -> str:
    """Return the name of an accelerator, e.g. "NVIDIA H100 80GB HBM3"."""
    if device.type not in METERED:
        return device.type
    return torch.get_device_module(device).get_device_name(device)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work; a CPU always has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a device; the machine's if the device has none of its own."""
    if device.type in METERED:
        return torch.get_device_module(device).mem_get_info(device)[0]
    import psutil  # a dependency of the extras that measure

    return psutil.virtual_memory().available


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Measure the peak memory of `run` beyond the memory that was allocated before it.

    torch's allocator counts it, so memory that libraries allocate by themselves is not included. On MPS, where torch
    records no peak, it is the memory that the allocator took from the system during `run`.
    """
    if device.type == "cpu":
        return _peak_bytes_of_cpu(run)
    module = torch.get_device_module(device)
    synchronize(device)
    if device.type == "mps":
        module.empty_cache()
        before = module.driver_allocated_memory()
        run()
        synchronize(device)
        return module.driver_allocated_memory() - before
    before = module.memory_allocated(device)
    module.reset_peak_memory_stats(device)
    run()
    synchronize(device)
    return module.max_memory_allocated(device) - before


def _peak_bytes_of_cpu(run: Callable[[], object]) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise the profiler prints to stderr when it starts and stops
    with profile(profile_memory=True) as recorded:
        run()
    results: Any = recorded.kineto_results
    held = peak = 0
    for event in results.events():  # in the order of time
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak
