"""Processes forked by train/forked.py."""

import multiprocessing
from pathlib import Path

from tests.forked import run_program


def test_the_shared_libraries_are_not_searched_for_garbage(tmp_path: Path) -> None:
    program = """
    import gc
    import sys
    assert "transformers.trainer" in sys.modules
    print(gc.isenabled(), gc.get_freeze_count() > len(gc.get_objects()))
    """
    assert run_program(program, folder=tmp_path).splitlines()[-1] == "True True"


def test_a_forked_process_starts_others_as_a_fresh_one_does(tmp_path: Path) -> None:
    program = "import multiprocessing; print(multiprocessing.get_start_method())"
    assert run_program(program, folder=tmp_path).splitlines()[-1] == multiprocessing.get_start_method()
