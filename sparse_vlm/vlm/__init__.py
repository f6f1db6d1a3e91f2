"""Tokens → language, on transformers' Llava. Importing it registers our classes with transformers' Auto classes."""

import transformers
from packaging.version import Version

from sparse_vlm.errors import UserError

if Version(transformers.__version__) < Version("5.23"):
    raise UserError(
        f"The vision-language model needs transformers 5.23 or newer, found {transformers.__version__}: "
        "pip install 'sparse-vlm[vlm]'. The encoder and llava_patch run with this one."
    )

from sparse_vlm.vlm import modeling, processing

__all__ = ["modeling", "processing"]
