"""Where a model computes and in which type, on whatever accelerator torch finds (CUDA, MPS, XPU); and its meters."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.profiler import profile

from sparse_vlm.dtypes import DTYPES
from sparse_vlm.errors import UserError, unknown_choice

KINDS = ("cpu", "cuda", "mps", "xpu")
METERED = ("cuda", "xpu")  # their modules of torch have the same names for memory


def devices_here() -> list[torch.device]:
    """Every device that torch sees: the CPU, then the accelerators."""
    cpu = torch.device("cpu")
    if not torch.accelerator.is_available():
        return [cpu]
    accelerator = torch.accelerator.current_accelerator()
    assert accelerator is not None
    return [cpu, *(torch.device(accelerator.type, index) for index in range(torch.accelerator.device_count()))]


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name, with its number.

    Args:
        name: "auto": the first accelerator, or the CPU where there is none; else "cpu", "cuda", "cuda:1", "mps" …

    Raises:
        UserError: an unknown name, or a device that torch does not see.
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
    """The type of that name.

    Args:
        name: a key of `DTYPES`; "auto": bfloat16 on an accelerator that computes in it, else float32.
        device: where the model will compute.

    Raises:
        UserError: an unknown name.
    """
    if name == "auto":
        return torch.bfloat16 if has_bfloat16(device) else torch.float32
    if name not in DTYPES:
        raise unknown_choice("--dtype", name, ("auto", *DTYPES))
    return DTYPES[name]


def has_bfloat16(device: torch.device) -> bool:
    """Whether an accelerator computes in bfloat16 itself, without emulating it; False for a CPU."""
    if device.type == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)
    if device.type not in METERED:
        return False
    module = torch.get_device_module(device)
    with module.device(device):
        return module.is_bf16_supported(including_emulation=False)


def device_name(device: torch.device) -> str:
    """What an accelerator is called, e.g. "NVIDIA H100 80GB HBM3"."""
    if device.type not in METERED:
        return device.type
    return torch.get_device_module(device).get_device_name(device)


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all that it was given; a CPU has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device; one without memory of its own has the machine's."""
    if device.type in METERED:
        return torch.get_device_module(device).mem_get_info(device)[0]
    import psutil  # of the extras that measure

    return psutil.virtual_memory().available


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The most bytes that `run` has beyond what was allocated before it.

    Counted by torch's allocator: weights that exist already are not in it, and neither is what libraries allocate
    behind torch's back. On MPS, where torch keeps no peak, what the allocator took from the system meanwhile.
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
