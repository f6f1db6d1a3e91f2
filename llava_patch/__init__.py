"""SparseFormer vision towers for an unmodified haotian-liu/LLaVA: `--vision_tower sparseformer-clip-l`.

This module only needs the standard library: a `.pth` file imports it when Python starts (`sparse-vlm llava enable`).
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

__all__ = ["install", "install_before_llava", "uninstall"]


def install() -> None:
    """Make LLaVA accept the towers `sparseformer-…` and `sparseformer:…`, and run on recent versions of transformers.

    Modules that are imported already are patched immediately, others right after their import. LLaVA's own towers are
    not affected. Idempotent.
    """
    from llava_patch.patches import install

    install()


def uninstall() -> None:
    """Undo `install`. Existing towers continue to work."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _BeforeLlava)]
    if "llava_patch.patches" in sys.modules:
        from llava_patch.patches import uninstall

        uninstall()


def install_before_llava() -> None:
    """Call `install` when llava is imported. A program that does not import it is not slowed down."""
    if "llava" in sys.modules:
        install()
    elif not any(isinstance(finder, _BeforeLlava) for finder in sys.meta_path):
        sys.meta_path.insert(0, _BeforeLlava())


class _BeforeLlava(MetaPathFinder):
    """A finder that finds nothing, but notices the import of llava."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if fullname == "llava":
            sys.meta_path.remove(self)
            install()
