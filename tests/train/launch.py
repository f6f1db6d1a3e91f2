"""Run stages as separate processes on the CPU."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.forked import run_together
from tests.forking_python import forking_python
from tests.ports import free_port


def deepspeed(module: str, arguments: list[str], processes: int = 2) -> None:
    """Run a module under DeepSpeed's launcher, as in docs/training.md."""
    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", str(processes)]
    launcher += ["--master_port", str(free_port())]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": path, "DS_ACCELERATOR": "cpu"}
    with TemporaryDirectory() as folder, forking_python(Path(folder)) as python:
        command = [str(python), *launcher, "--module", module, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def forked(module: str, arguments: list[str], processes: int = 2) -> None:
    """Run a module in forked processes with the environment that DeepSpeed's and torch's launchers set.

    That the launchers themselves make such processes is tested once a stage for DeepSpeed's, and with LLaVA's training
    for torch's.
    """
    port = str(free_port())
    shared = {"DS_ACCELERATOR": "cpu", "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    out = arguments[arguments.index("--output_dir") + 1]
    run_together(["-m", module, *arguments], ranks, Path(f"{out}.txt"))
