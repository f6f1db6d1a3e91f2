"""A fake GPU: torch's fake tensors of device "cuda" have no values, and cannot be combined with CPU tensors."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode


class FakeGPU:
    """The value of `fake_gpu`. In its block, new tensors of device "cuda" are fake."""

    device = torch.device("cuda", 0)

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode

    def move(self, module: Any, dtype: torch.dtype | None = None) -> Any:
        """Move a module like `module.to("cuda", dtype)`; the real weights are released."""

        def moved(tensor: Tensor) -> Tensor:
            fake = self._mode.from_tensor(tensor.detach()).to(self.device)
            return fake if dtype is None or not fake.is_floating_point() else fake.to(dtype)

        return module._apply(moved)


@contextmanager
def fake_gpu() -> Iterator[FakeGPU]:
    """Open a fake GPU for a block: build modules before it, `move` them in it, and call them on tensors of "cuda".

    Operations on tensors of both devices raise, as on a GPU. So do operations that need a value (`item`, `tolist`, a
    branch on a tensor), which on a GPU would wait for all queued kernels. Autocast works as on a GPU. transformers'
    check of the number of image tokens needs a value and is switched off.
    """
    no_check = patch.dict(os.environ, TRANSFORMERS_DISABLE_TORCH_CHECK="1")
    amp = patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False)
    bfloat16 = patch("torch.cuda.is_bf16_supported", return_value=True)
    future = torch.__future__
    before = future.get_overwrite_module_params_on_conversion()
    future.set_overwrite_module_params_on_conversion(True)  # a fake tensor cannot be the data of a real parameter
    try:
        with no_check, amp, bfloat16, FakeTensorMode(allow_non_fake_inputs=True) as mode:
            yield FakeGPU(mode)
    finally:
        future.set_overwrite_module_params_on_conversion(before)


def assert_on_gpu(*found: Any) -> None:
    """Assert that all tensors in tuples, lists and dictionaries are on the fake GPU."""
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(found) if isinstance(leaf, Tensor)]
    assert leaves
    assert {leaf.device.type for leaf in leaves} == {"cuda"}
