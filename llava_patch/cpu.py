"""`--cpu`: run LLaVA's scripts, which hard-code 'cuda', on a machine without CUDA."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class CudaIsCpu(TorchFunctionMode):
    """Context in which the device 'cuda' in a call of torch means the CPU."""

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if "device" in given:
            given["device"] = _here(given["device"])
        return func(*map(_here, args), **given)


def _here(value: Any) -> Any:
    if isinstance(value, str):
        return "cpu" if value == "cuda" else value
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == "cuda" else value


def cuda_is_cpu() -> None:
    """Enter `CudaIsCpu` for the rest of the process, and make torch.cuda.synchronize do nothing."""
    CudaIsCpu().__enter__()
    torch.cuda.synchronize = lambda device=None: None  # nothing to synchronise on a CPU
