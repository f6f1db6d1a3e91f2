"""Run something right after a module has been imported, without importing it now."""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Hook(MetaPathFinder):
    """Finds nothing by itself: asks the finders behind it and extends what their loader does for one module."""

    def __init__(self, module: str, callback: Callable[[], None]) -> None:
        self.module, self.callback = module, callback

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.module:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                self._extend(spec)
                return spec
        return None

    def _extend(self, spec: ModuleSpec) -> None:
        loader = spec.loader
        assert loader is not None
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            sys.meta_path.remove(self)
            self.callback()

        # The loader of a source file is made anew for each spec, so this touches no other module.
        loader.exec_module = exec_module  # type: ignore[method-assign]


def after_import(module: str, callback: Callable[[], None]) -> None:
    """Calls `callback` once, at once if `module` is imported already, else right after its first import.

    Args:
        module: dotted name of a module that lies in a source file.
        callback: what to do. An exception in it makes the import fail.
    """
    if module in sys.modules:
        callback()
    else:
        sys.meta_path.insert(0, _Hook(module, callback))
