"""The program `python` that forks: output, exit status and environment are those of what it runs."""

import os
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.forking_python import forking_python

PROGRAM = """
import os, subprocess, sys
print(sys.argv[1:], os.environ["GIVEN"], flush=True)
if len(sys.argv) == 2:
    sys.exit(subprocess.run([sys.executable, "-u", __file__, "in", "turn"]).returncode)
sys.exit(3)
"""


@pytest.mark.slow
def test_a_forked_process_starts_others_in_the_same_way(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    with TemporaryDirectory() as folder, forking_python(Path(folder)) as python:
        command = [str(python), str(tmp_path / "program.py"), "one"]
        done = subprocess.run(command, env=os.environ | {"GIVEN": "x"}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "['one'] x\n['in', 'turn'] x\n")
