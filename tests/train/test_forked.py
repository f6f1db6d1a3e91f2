"""Processes forked by train/forked.py."""

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
