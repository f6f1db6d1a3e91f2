"""The vision-language model: visual tokens → language, on transformers' Llava.

Importing this package registers its classes with transformers' Auto classes.
"""

import transformers
from packaging.version import Version

from sparse_vlm.errors import UserError

if Version(transformers.__version__) < Version("5.19"):
    raise UserError(
        f"The vision-language model needs transformers 5.19 or newer, found {transformers.__version__}: "
        "pip install 'sparse-vlm[vlm]'. The encoder and llava_patch work with this version."
    )

from sparse_vlm.vlm import modeling, processing

__all__ = ["modeling", "processing"]
