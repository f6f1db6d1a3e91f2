import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

from sparse_vlm.integrations.import_hook import after_import


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module that is not imported yet. The module and its hooks are removed after the test."""
    (tmp_path / "some_module_of_the_test.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    name = "some_module_of_the_test"
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def test_runs_once_right_after_the_import(module: str) -> None:
    seen = []
    after_import(module, lambda: seen.append(sys.modules[module].value))
    assert seen == []
    before = len(sys.meta_path)
    importlib.import_module(module)
    importlib.import_module(module)
    assert seen == [1]
    assert len(sys.meta_path) == before - 1


def test_leaves_no_trace_in_the_module(module: str) -> None:
    plain = importlib.util.find_spec(module)
    after_import(module, lambda: None)
    hooked = importlib.util.find_spec(module)
    assert plain is not None
    assert hooked is not None
    assert hooked.origin == plain.origin
    imported = importlib.import_module(module)
    assert imported.__spec__ is not None
    assert type(imported.__loader__) is type(imported.__spec__.loader) is type(plain.loader)


def test_runs_immediately_if_imported_already(module: str) -> None:
    importlib.import_module(module)
    seen = []
    after_import(module, lambda: seen.append(True))
    assert seen == [True]


def test_two_hooks_on_one_module(module: str) -> None:
    seen = []
    after_import(module, lambda: seen.append("first"))
    after_import(module, lambda: seen.append("second"))
    importlib.import_module(module)
    assert sorted(seen) == ["first", "second"]


def test_a_missing_module_stays_missing() -> None:
    after_import("no_such_module_anywhere", lambda: None)
    try:
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("no_such_module_anywhere")
    finally:
        sys.meta_path.pop(0)


def test_a_failing_callback_fails_the_import(module: str) -> None:
    def fail() -> None:
        raise RuntimeError("not this version")

    after_import(module, fail)
    with pytest.raises(RuntimeError, match="not this version"):
        importlib.import_module(module)
    assert module not in sys.modules
