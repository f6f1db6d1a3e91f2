"""Settings of training on a CPU."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from train.stages.cpu import SHORT, attention_kernels

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("dtype", "tokens", "flash"),
    [(torch.bfloat16, 8, False), (torch.bfloat16, SHORT + 1, True), (torch.float32, 8, True)],
)
def test_short_rows_in_bf16_are_computed_without_flash_attention(
    dtype: torch.dtype, tokens: int, flash: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KINETO_LOG_LEVEL", "99")
    rows = torch.randn(1, 2, tokens, 16, dtype=dtype)
    with attention_kernels(CPU, dtype, tokens), profile(activities=[ProfilerActivity.CPU]) as recorded:
        F.scaled_dot_product_attention(rows, rows, rows)
    names = {event.key for event in recorded.key_averages()}
    assert any("flash_attention" in name for name in names) is flash


def test_freed_memory_is_used_again() -> None:
    """A new process, because the allocator's settings stay."""
    program = """
import resource, torch
from train.stages.cpu import keep_freed_memory
keep_freed_memory()
for _ in range(16):
    torch.ones(1 << 24).sum()  # 64 MiB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    torch.ones(1 << 24).sum()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert int(faults) < 4096  # a tensor has 16,384 pages of 4 KiB
