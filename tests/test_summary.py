"""The last line of `make test`."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.summary import summary

TESTS = """
import pytest
def test_1(): pass
def test_2(): pass
def test_3(): pytest.skip("no data")
def test_4(): assert False
def test_5(absent): pass
"""


def test_all_parts_are_counted(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--junit-xml=one.xml"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert summary(tmp_path) == "2 passed, 1 skipped, 2 failed in 1 parts"
    shutil.copy(tmp_path / "one.xml", tmp_path / "two.xml")
    assert summary(tmp_path) == "4 passed, 2 skipped, 4 failed in 2 parts"
