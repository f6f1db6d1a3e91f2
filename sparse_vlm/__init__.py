"""SparseFormer vision encoders for multimodal LLMs.

Importing it costs nothing: torch and timm come with the first name that is taken from it, so that command lines can
show their help at once.
"""

import logging
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sparse_vlm.errors import UserError
from sparse_vlm.integrations.import_hook import after_import

if TYPE_CHECKING:
    from sparse_vlm.encoder import EncoderOutput, SparseFormer, SparseFormerConfig, create_encoder, list_encoders

__all__ = ["EncoderOutput", "SparseFormer", "SparseFormerConfig", "create_encoder", "list_encoders"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("sparse_vlm.encoder"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def _register_with_transformers() -> None:
    # Without the extra vlm, transformers may be too old, or packages beside it missing. The encoder needs neither.
    # The import below loads bitsandbytes, if installed, which logs at once that an optional kernel is missing.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    with suppress(UserError, ModuleNotFoundError):
        import_module("sparse_vlm.vlm")


# Our encoders are timm models, and model directories of ours open with transformers' Auto classes, as soon as both
# packages are imported, in either order. The encoder imports timm itself, and timm_models needs the whole encoder: so
# it follows the encoder, and the encoder follows timm.
after_import("sparse_vlm.encoder", lambda: import_module("sparse_vlm.integrations.timm"))
after_import("timm", lambda: import_module("sparse_vlm.encoder"))
after_import("transformers", _register_with_transformers)
