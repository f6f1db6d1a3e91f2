"""SparseFormer vision towers for haotian-liu/LLaVA, which stays unmodified: `--vision_tower sparseformer-clip-l`.

This module needs the standard library only: a `.pth` file imports it when Python starts (`sparse-vlm llava enable`).
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

__all__ = ["install", "install_before_llava", "uninstall"]


def install() -> None:
    """Teaches LLaVA the names `sparseformer-…` and `sparseformer:…`, and runs it on today's transformers.

    What is imported already is patched at once, the rest right after its import; other towers stay LLaVA's own.
    Calling it again does nothing.
    """
    from llava_patch.patches import install

    install()


def uninstall() -> None:
    """Takes back what `install` did; towers that exist already go on working."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _BeforeLlava)]
    if "llava_patch.patches" in sys.modules:
        from llava_patch.patches import uninstall

        uninstall()


def install_before_llava() -> None:
    """Calls `install` as soon as somebody imports llava: a Python that never does pays nothing for it."""
    if "llava" in sys.modules:
        install()
    elif not any(isinstance(finder, _BeforeLlava) for finder in sys.meta_path):
        sys.meta_path.insert(0, _BeforeLlava())


class _BeforeLlava(MetaPathFinder):
    """Finds nothing; sees that llava is asked for."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if fullname == "llava":
            sys.meta_path.remove(self)
            install()
