"""Let transformers open GGUF files in half of the time: it would parse each twice and unpack it in small pieces."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

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
    gguf: Any
    try:
        import gguf
    except ModuleNotFoundError:  # transformers says what to install
        yield
        return
    reader, names, unpack = gguf.GGUFReader, gguf.get_tensor_name_map, gguf.dequantize

    def dequantize(data: np.ndarray, kind: int) -> np.ndarray:
        """uint8[..., bytes] -> float32[..., elements]; `kind` is a gguf.GGMLQuantizationType."""
        if kind not in dequant.GGML_BLOCK:
            return unpack(data, kind)
        elements, size = dequant.GGML_BLOCK[kind]
        values = dequant.dequantize(torch.from_numpy(data.copy()).flatten(), int(kind))
        return values.reshape(*data.shape[:-1], data.shape[-1] // size * elements).numpy()

    gguf.GGUFReader, gguf.get_tensor_name_map, gguf.dequantize = cache(reader), cache(names), dequantize
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map, gguf.dequantize = reader, names, unpack
