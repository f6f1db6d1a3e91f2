"""Training on a CPU: which attention kernel is faster, and memory that stays with the process."""

import ctypes
import sys
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

# On a CPU, the backward pass of flash attention in bf16 takes as long for few tokens as for many: for 2,048 tokens in
# rows of 17, 65, 257 and 577 it takes 102, 90, 47 and 86 ms on one core with AMX, the plain computation 15, 19, 38 and
# 79 ms. But the plain forward pass takes twice the time at 17 tokens, and five times at 257.
SHORT = 200  # tokens of a row
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of glibc's mallopt(3)


def attention_kernels(device: torch.device, dtype: torch.dtype, tokens: int) -> AbstractContextManager[None]:
    """Return the context in which a training step's attention is fast.

    Args:
        device, dtype: of the step's matrix products.
        tokens: length of the longest row.
    """
    if device.type == "cpu" and dtype == torch.bfloat16 and tokens <= SHORT:
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()


def keep_freed_memory() -> None:
    """Let glibc's allocator keep freed memory for the next step, instead of returning it to the system.

    Otherwise every large tensor is new memory, which the system clears page by page. Elsewhere this does nothing.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(M_MMAP_MAX, 0)  # the heap grows for large blocks too
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # and never shrinks
