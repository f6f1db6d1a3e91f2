"""`sparse-vlm llava enable` in a separate environment, with LLaVA's own commands."""

import os
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

from llava_patch import startup
from tests.llava_patch.tiny import ROOT, training_arguments

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment that can import this environment's packages, so that nothing is written to this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    purelib = Path(ask(python, "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
    (purelib / "packages.pth").write_text(f"{sysconfig.get_path('purelib')}\n{ROOT}\n")
    return python


def ask(python: Path, *command: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -c PROGRAM`, or a command line."""
    line = ["-c", *command] if len(command) == 1 else list(command)
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    result = subprocess.run(
        [python, *line], capture_output=True, text=True, env=variables, cwd=python.parents[1], timeout=600
    )
    assert not check or result.returncode == 0, result.stderr[-4000:]
    return result


def llava_command(python: Path, *action: str) -> str:
    """Run `sparse-vlm llava …` in that environment."""
    return ask(python, "-m", "sparse_vlm", "llava", *action).stdout


WAITING = "import sys; print([type(finder).__name__ for finder in sys.meta_path].count('_BeforeLlava'))"


def test_enable_off_switch_disable(
    llava: None, python: Path, llama: Path, tower: str, data: Path, tmp_path: Path
) -> None:
    assert ask(python, WAITING).stdout.strip() == "0"
    assert "Enabled: " in llava_command(python, "enable")
    started = ask(python, WAITING + "; print([name for name in ('torch', 'sparse_vlm') if name in sys.modules])")
    assert started.stdout.split("\n")[:2] == ["1", "[]"]
    assert ask(python, WAITING, **{startup.OFF_SWITCH: "0"}).stdout.strip() == "0"
    find = "import importlib.util; print(importlib.util.find_spec('llava').submodule_search_locations[0])"
    script = Path(ask(python, find).stdout.strip()) / "train" / "train.py"
    out = tmp_path / "llava-enabled"
    options = {"version": "plain", "tune_mm_mlp_adapter": True, "max_steps": 1}
    command = training_arguments(llama, tower, data, "plain.json", out, **options)
    ask(python, str(script), *command)  # LLaVA's own command, without a launcher
    assert (out / "mm_projector.bin").is_file()
    assert "Disabled." in llava_command(python, "disable")
    assert "not enabled" in llava_command(python, "disable")
    assert ask(python, WAITING).stdout.strip() == "0"


def test_a_python_without_this_package_starts_normally(python: Path) -> None:
    """If the package was uninstalled without `disable`, the line does nothing and prints nothing."""
    result = ask(python, "-I", "-S", "-c", startup.LINE)
    assert result.stderr == ""
