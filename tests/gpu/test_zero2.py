"""ZeRO-2 in one process has the losses of the same run without it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.forked import ROOT
from tests.gpu.placed import losses, placed
from tests.gpu.runs import aligned
from tests.ports import free_port
from tests.train.language.test_align import flags

pytest.importorskip("deepspeed")


def test_align(words_dir: Path, data_dir: Path, tmp_path: Path, device: torch.device) -> None:
    if device.type == "cpu":
        pytest.skip("tests/train/language/test_align.py covers ZeRO-2 on the CPU, in two processes")
    options = placed(device.type, bf16=True)
    expected = aligned(words_dir, data_dir, tmp_path / "plain", **options)
    port = str(free_port())
    launched = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment = os.environ | launched | {"DS_ACCELERATOR": device.type}
    words = flags(
        words_dir,
        data_dir,
        tmp_path / "zero2",
        learning_rate=1e-3,
        **options,
        deepspeed="train/configs/deepspeed/zero2.json",
    )
    command = [sys.executable, "-m", "train.align", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert losses(tmp_path / "zero2") == pytest.approx(expected, rel=0.01)
