"""Callbacks that run right after a module is imported, without importing it."""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _Hook(MetaPathFinder):
    """Wraps the loader that the other finders return for one module."""

    def __init__(self, module: str, callback: Callable[[], object]) -> None:
        self.module, self.callback = module, callback

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.module:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _HookedLoader(spec.loader, self)
                return spec
        return None

    def cancel(self) -> None:
        """Stop waiting for the import. Idempotent."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)


class _HookedLoader(Loader):
    """Delegates to `loader`, then runs the callback. The module itself only sees `loader`."""

    def __init__(self, loader: Loader, hook: _Hook) -> None:
        self.loader, self.hook = loader, hook

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        self.hook.cancel()
        self.hook.callback()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)  # get_source, get_resource_reader …, for code that inspects the spec


def after_import(module: str, callback: Callable[[], object]) -> Callable[[], None]:
    """Call `callback` once: immediately if `module` is imported already, otherwise right after its first import.

    Args:
        module: dotted name of the module.
        callback: function to call. An exception in it makes the import fail.

    Returns:
        A function that cancels the callback; it does nothing after the import.
    """
    hook = _Hook(module, callback)
    if module in sys.modules:
        callback()
    else:
        sys.meta_path.insert(0, hook)
    return hook.cancel
