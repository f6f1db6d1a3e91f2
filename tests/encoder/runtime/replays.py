"""Captures on the CPU: a replay runs the function again and fills the same outputs, as a CUDA graph does."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sparse_vlm.encoder.runtime.cuda_graphs import Captured


class CpuRecorder:
    """Stands in for CudaRecorder where there is no GPU; counts."""

    device_type = "cpu"

    def __init__(self) -> None:
        self.captures = self.replays = 0
        self.pools: list[object] = []

    def capture(self, run: Callable[[], Any], device: torch.device, pool: Any) -> Captured:
        self.captures += 1
        self.pools.append(pool)
        outputs = run()
        held: list[Tensor] = tree_leaves(outputs)
        for tensor in held:
            tensor.zero_()  # a capture launches nothing: only a replay fills the outputs

        def replay() -> None:
            self.replays += 1
            for tensor, value in zip(held, tree_leaves(run()), strict=True):
                tensor.copy_(value)

        return Captured(replay, outputs, pool or f"pool {self.captures}")
