"""Stages as processes of their own, on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def deepspeed(script: str, arguments: list[str], processes: int = 2) -> None:
    """Under DeepSpeed's launcher, as docs/training.md says."""
    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", str(processes)]
    _run([*launcher, script, *arguments], {"DS_ACCELERATOR": "cpu"})


def torchrun(script: str, arguments: list[str], processes: int = 2) -> None:
    """Under torch's launcher, which makes it DistributedDataParallel."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    _run([*launcher, script, *arguments, "--ddp_backend", "gloo"], {})


def _run(command: list[str], more: dict[str, str]) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": path} | more
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
