"""`sparse-vlm llava status`: which LLaVA it names, where several could be imported."""

import os
from pathlib import Path

import pytest

from llava_patch import status
from llava_patch.status import Found, find_llava


def make_clone(folder: Path, version: str = "1.7.0.dev0", *, is_next: bool = True) -> Path:
    """Write the few files by which a clone is recognised; return the folder of its package."""
    for name in ("llava/__init__.py", "llava/model/__init__.py", "llava/model/llava_arch.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    if is_next:
        (folder / "llava/model/multimodal_resampler").mkdir()
    (folder / "pyproject.toml").write_text(f'[project]\nname = "llava"\nversion = "{version}"\n')
    return folder / "llava"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "elsewhere"


def test_a_clone_on_pythonpath_is_found(elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = make_clone(tmp_path / "LLaVA-NeXT")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(package.parent), os.environ.get("PYTHONPATH", "")]))
    assert find_llava() == find_llava("-P") == Found(package, None)


def test_a_clone_in_the_current_folder_is_imported_by_modules_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = make_clone(tmp_path / "LLaVA")
    monkeypatch.chdir(package.parent)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    by_scripts = find_llava("-P")
    assert find_llava() == Found(package, None)
    assert by_scripts is None or by_scripts.place != package
    monkeypatch.setattr(status, "_patches", lambda folder: [])
    text = status.describe()
    assert f"imported from {package}" in text
    assert "by python -m MODULE in this folder. A script, such as python llava/train/train.py, imports" in text
    monkeypatch.setenv("PYTHONPATH", ".")
    assert "A script" not in status.describe()


def test_the_installed_package_behind_a_clone_is_named(
    llava: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(make_clone(tmp_path / "LLaVA-NeXT").parent)
    monkeypatch.setattr(status, "_patches", lambda folder: [])
    lines = status.describe().splitlines()
    assert "llava         1.7.0.dev0, a clone of LLaVA-NeXT (tested: 1.2.2.post1)" in lines
    assert any(line.strip().startswith("instead of the installed llava-torch 1.2.2.post1 in ") for line in lines)


@pytest.mark.parametrize("project", [None, "[project", '[project]\nname = "llava"\n', "project = 3\n"])
def test_a_clone_without_a_readable_version(
    tmp_path: Path, project: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = make_clone(tmp_path / "LLaVA", is_next=False)
    (package.parent / "pyproject.toml").unlink()
    if project is not None:
        (package.parent / "pyproject.toml").write_text(project)
    monkeypatch.chdir(package.parent)
    monkeypatch.setattr(status, "_patches", lambda folder: [])
    assert "llava         a clone (tested: 1.2.2.post1)" in status.describe().splitlines()


def test_a_package_of_the_same_name_is_not_llava(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llava").mkdir()
    (tmp_path / "llava/__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    assert status.describe().endswith(
        "This is not LLaVA, but a package without model/llava_arch.py: start Python in another folder, or move it."
    )


def test_a_folder_of_the_same_name_is_not_llava(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a clone into a folder `llava`, seen from its parent, if LLaVA is not installed."""
    (tmp_path / "llava").mkdir()
    monkeypatch.chdir(tmp_path)
    found = find_llava("-S")  # without site-packages
    assert found == Found(tmp_path / "llava", "a folder without __init__.py")


BROKEN = "raise ImportError('cannot import name x from y')\n"


def test_an_import_that_fails_is_reported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, which may import another LLaVA."""
    package = make_clone(tmp_path / "LLaVA-NeXT")
    (package / "__init__.py").write_text(BROKEN)
    (package / "model/language_model").mkdir()
    for name in ("llava_llama", "llava_qwen"):
        (package / f"model/language_model/{name}.py").touch()
    monkeypatch.chdir(package.parent)
    from tests.llava_patch.tiny import run_forked

    text = run_forked("-m", "sparse_vlm", "llava", "status", printed=tmp_path / "printed.txt")
    named = "llava.model.language_model.llava_llama, llava.model.language_model.llava_qwen"
    assert text.rstrip().endswith(f"cannot import {named}: ImportError: cannot import name x from y")
    assert text.count("cannot import name x") == 1
    assert "not imported  llava.model.llava_arch.LlavaMetaForCausalLM.get_2dPool (LLaVA-NeXT)" in text
    assert "llava_gemma" not in text
