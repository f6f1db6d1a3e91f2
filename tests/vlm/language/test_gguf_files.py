"""GGUF files are parsed once, and PyTorch unpacks their weights to the same numbers as the package gguf."""

from pathlib import Path

import numpy as np
import pytest

from sparse_vlm.vlm.language.gguf_files import parsed_once

gguf = pytest.importorskip("gguf")


def test_a_file_is_parsed_once_within_the_block(smollm2_gguf: Path) -> None:
    """A larger tensor of each type is compared with what gguf makes of it."""
    originals = (gguf.GGUFReader, gguf.get_tensor_name_map, gguf.dequantize)
    with parsed_once():
        reader = gguf.GGUFReader(smollm2_gguf)
        assert gguf.GGUFReader(smollm2_gguf) is reader
        assert gguf.get_tensor_name_map(4, 2) is gguf.get_tensor_name_map(4, 2)
        tensors = {tensor.tensor_type: tensor for tensor in reader.tensors if "ffn_down" in tensor.name}
        tensors |= {tensor.tensor_type: tensor for tensor in reader.tensors if "norm" in tensor.name}
        assert len(tensors) == 2  # a quantized one and float32
        for kind, tensor in tensors.items():
            np.testing.assert_array_equal(gguf.dequantize(tensor.data, kind), originals[2](tensor.data, kind))
    assert (gguf.GGUFReader, gguf.get_tensor_name_map, gguf.dequantize) == originals


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0"])
def test_weights_of_each_type(kind: str) -> None:
    """Q5_0 is one that transformers does not unpack with PyTorch."""
    quantization = gguf.GGMLQuantizationType[kind]
    data = gguf.quantize(np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32), quantization)
    expected = gguf.dequantize(data, quantization)
    with parsed_once():
        found = gguf.dequantize(data, quantization)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


def test_an_error_restores_the_package() -> None:
    original = gguf.GGUFReader
    with pytest.raises(KeyError), parsed_once():
        raise KeyError
    assert gguf.GGUFReader is original
