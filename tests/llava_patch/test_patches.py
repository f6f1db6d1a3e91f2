"""Patching the real LLaVA, in processes of their own."""

import json
from typing import Any

import pytest
import transformers

from tests.llava_patch.tiny import run

pytestmark = pytest.mark.usefixtures("llava")

LOOK = """
import json, sys
from types import SimpleNamespace

def towers():
    "What both holders of the function build, as type names, or the error."
    import llava.model.llava_arch as arch
    import llava.model.multimodal_encoder.builder as builder
    found = []
    for module in (builder, arch):
        for name in ("sparseformer-clip-b?weights=random&image_size=64", "openai/clip-none", "someone/else"):
            args = SimpleNamespace(vision_tower=name, mm_vision_select_layer=-2)
            try:
                found.append(type(module.build_vision_tower(args)).__name__)
            except Exception as error:
                found.append(type(error).__name__)
    return found

import llava_patch
"""
PATCHED = ["SparseFormerTower", "OSError", "ValueError"]  # CLIP's own loading fails offline: it was asked
PLAIN = ["ValueError", "OSError", "ValueError"]  # "Unknown vision tower"


def look(program: str) -> Any:
    """What a program prints last, as JSON."""
    return json.loads(run("-c", LOOK + program).stdout.strip().splitlines()[-1])


@pytest.mark.slow
def test_install_before_llava_and_uninstall() -> None:
    found = look("""
llava_patch.install(); llava_patch.install()
first = towers()
import llava.model.llava_arch as arch
before = [type(finder).__name__ for finder in sys.meta_path].count("_Hook")
llava_patch.uninstall()
second = towers()
after = [type(finder).__name__ for finder in sys.meta_path].count("_Hook")
llava_patch.install()
print(json.dumps([first, second, towers(), before > after, hasattr(arch.build_vision_tower, "__wrapped__")]))
""")
    assert found == [PATCHED * 2, PLAIN * 2, PATCHED * 2, True, True]


@pytest.mark.slow
def test_install_when_llava_is_there_already() -> None:
    found = look("""
llava_patch.install()  # today's transformers need the shims for the import
import llava
llava_patch.uninstall()
plain = towers()
llava_patch.install()
print(json.dumps([plain, towers()]))
""")
    assert found == [PLAIN * 2, PATCHED * 2]


@pytest.mark.slow
def test_waiting_costs_nothing_and_then_installs() -> None:
    found = look("""
llava_patch.install_before_llava(); llava_patch.install_before_llava()
heavy = [name for name in ("torch", "transformers", "sparse_vlm") if name in sys.modules]
waiting = [type(finder).__name__ for finder in sys.meta_path].count("_BeforeLlava")
print(json.dumps([heavy, waiting, towers()]))
""")
    assert found == [[], 1, PATCHED * 2]


@pytest.mark.slow
@pytest.mark.skipif(transformers.__version__ < "5", reason="tells what transformers 5 needs")
def test_status_tells_what_is_needed_here() -> None:
    text = run("-m", "sparse_vlm.cli", "llava", "status").stdout
    assert "llava         1.2.2.post1 (tested: 1.2.2.post1)" in text
    assert "cannot import" not in text
    shims = [line for line in text.splitlines() if "llava_trainer.LLaVATrainer" in line]
    assert len(shims) == 3
    assert all(line.startswith("in effect") for line in shims)  # all serve transformers 5


@pytest.mark.skipif(transformers.__version__ < "5", reason="transformers 4 has the name itself")
def test_leaves_other_modules_alone_without_llava() -> None:
    program = """
llava_patch.install()
import transformers.trainer
print(json.dumps(hasattr(transformers.trainer, "ALL_LAYERNORM_LAYERS")))
"""
    assert look(program) is False
