"""Stages as processes of their own, on the CPU."""

import os
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def deepspeed(script: str, arguments: list[str], processes: int = 2) -> None:
    """Under DeepSpeed's launcher, as docs/training.md says."""
    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", str(processes)]
    _run([*launcher, script, *arguments], [{"DS_ACCELERATOR": "cpu"}])


def torchrun(script: str, arguments: list[str], processes: int = 2) -> None:
    """Under torch's launcher, which makes it DistributedDataParallel."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    _run([*launcher, script, *arguments, "--ddp_backend", "gloo"], [{}])


def launched(script: str, arguments: list[str], processes: int = 1) -> None:
    """In the environment that DeepSpeed's launcher makes, without its two processes, which cost ten seconds a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"DS_ACCELERATOR": "cpu", "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = map(str, range(processes))
    _run([sys.executable, script, *arguments], [shared | {"RANK": rank, "LOCAL_RANK": rank} for rank in ranks])


def _run(command: list[str], environments: list[dict[str, str]]) -> None:
    """The command once in each of the environments, at the same time."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    common = os.environ | {"OMP_NUM_THREADS": "1", "PATH": path}
    with ExitStack() as stack:
        started = []
        for more in environments:
            output = stack.enter_context(tempfile.TemporaryFile("w+"))  # a pipe that nobody reads would block it
            process = subprocess.Popen(command, cwd=ROOT, env=common | more, stdout=output, stderr=subprocess.STDOUT)
            stack.callback(process.wait)
            stack.callback(process.kill)  # before it
            started.append((process, output))
        for process, output in started:
            status = process.wait(timeout=900)
            output.seek(0)
            assert status == 0, output.read()[-6000:]
