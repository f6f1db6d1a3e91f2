"""Patches of the real LLaVA, tested in separate processes."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import transformers

from tests.llava_patch.tiny import run, run_forked

pytestmark = pytest.mark.usefixtures("llava")

LOOK = """
import json, sys
from types import SimpleNamespace

def towers():
    "What both holders of the function build, as type names, or the error. The first argument is a directory."
    import llava.model.llava_arch as arch
    import llava.model.multimodal_encoder.builder as builder
    found = []
    for module in (builder, arch):
        for name in (f"sparseformer:{sys.argv[1]}", "openai/clip-none", "someone/else"):
            args = SimpleNamespace(vision_tower=name, mm_vision_select_layer=-2)
            try:
                found.append(type(module.build_vision_tower(args)).__name__)
            except Exception as error:
                found.append(type(error).__name__)
    return found

import llava_patch
"""
PATCHED = ["SparseFormerTower", "OSError", "ValueError"]  # CLIP's own loading is called, and fails offline
PLAIN = ["ValueError", "OSError", "ValueError"]  # "Unknown vision tower"


def last_line(printed: str) -> Any:
    """Parse the last line as JSON."""
    return json.loads(printed.strip().splitlines()[-1])


@pytest.mark.slow
def test_install_before_llava_uninstall_and_install_after_llava(encoder_dir: Path, tmp_path: Path) -> None:
    program = """
llava_patch.install(); llava_patch.install()
import transformers.trainer
shimmed = hasattr(transformers.trainer, "ALL_LAYERNORM_LAYERS")  # not before LLaVA is imported
first = towers()
import llava.model.llava_arch as arch
before = [type(finder).__name__ for finder in sys.meta_path].count("_Hook")
llava_patch.uninstall()
second = towers()
after = [type(finder).__name__ for finder in sys.meta_path].count("_Hook")
llava_patch.install()
wrapped = hasattr(arch.build_vision_tower, "__wrapped__")
print(json.dumps([shimmed, first, second, towers(), before > after, wrapped]))
"""
    (tmp_path / "program.py").write_text(LOOK + program)
    found = last_line(run_forked(tmp_path / "program.py", encoder_dir, printed=tmp_path / "printed.txt"))
    has_it_itself = transformers.__version__ < "5"
    assert found == [has_it_itself, PATCHED * 2, PLAIN * 2, PATCHED * 2, True, True]


@pytest.mark.slow
def test_install_before_llava_only_waits_for_the_import(encoder_dir: Path) -> None:
    program = """
llava_patch.install_before_llava(); llava_patch.install_before_llava()
heavy = [name for name in ("torch", "transformers", "sparse_vlm") if name in sys.modules]
waiting = [type(finder).__name__ for finder in sys.meta_path].count("_BeforeLlava")
print(json.dumps([heavy, waiting, towers()]))
"""
    found = last_line(run("-c", LOOK + program, encoder_dir).stdout)
    assert found == [[], 1, PATCHED * 2]


@pytest.mark.slow
@pytest.mark.skipif(transformers.__version__ < "5", reason="tells what transformers 5 needs")
def test_status_lists_the_shims_in_effect(tmp_path: Path) -> None:
    text = run_forked("-m", "sparse_vlm", "llava", "status", printed=tmp_path / "printed.txt")
    assert "llava         1.2.2.post1 (tested: 1.2.2.post1)" in text
    assert "cannot import" not in text
    assert "imported from" in text
    shims = [line for line in text.splitlines() if "llava_trainer.LLaVATrainer" in line]
    assert len(shims) == 3
    assert all(line.startswith("in effect") for line in shims)  # all are for transformers 5


@pytest.mark.slow
def test_status_names_the_imported_clone(tmp_path: Path) -> None:
    (tmp_path / "llava").mkdir()
    (tmp_path / "llava/__init__.py").touch()
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    text = run("-m", "sparse_vlm", "llava", "status", PYTHONPATH=path).stdout
    assert "llava         a clone (tested: 1.2.2.post1)" in text
    assert f"imported from {tmp_path / 'llava'}" in text
