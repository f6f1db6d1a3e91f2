"""Let transformers open GGUF files in half of the time: it would parse each twice and unpack it in small pieces."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
from transformers.integrations.gguf import dequant


@contextmanager
def parsed_once() -> Iterator[None]:
    """Within the block, a GGUF file is parsed once, its tensors' names are listed once instead of for each module, and
    PyTorch unpacks its weights instead of numpy.

    transformers looks all of these up in the package gguf when it opens a file. If it did not, this would have no
    effect.
    """
    try:
        import gguf
    except ModuleNotFoundError:  # transformers says what to install
        yield
        return
    originals = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map", "dequantize")}

    def dequantize(data: np.ndarray, kind: int) -> np.ndarray:
        """uint8[..., bytes] -> float32[..., elements]; `kind` is a gguf.GGMLQuantizationType."""
        if kind not in dequant.GGML_BLOCK:
            return originals["dequantize"](data, kind)
        elements, size = dequant.GGML_BLOCK[kind]
        values = dequant.dequantize(torch.from_numpy(data.copy()).flatten(), int(kind))
        return values.reshape(*data.shape[:-1], data.shape[-1] // size * elements).numpy()

    vars(gguf).update({name: cache(original) for name, original in originals.items()}, dequantize=dequantize)
    try:
        yield
    finally:
        vars(gguf).update(originals)
