"""The stem against its definition, in which ReLU precedes pooling."""

import pytest
import torch
import torch.nn.functional as F

from sparse_vlm.encoder.stem import Stem


@pytest.mark.parametrize("size", [(64, 64), (33, 70), (1, 1), (1, 9)])
def test_stem_matches_its_definition(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    stem, images = Stem(8), torch.randn(2, 3, *size)
    pooled = F.max_pool2d(F.relu(stem.conv(images)), kernel_size=3, stride=2, padding=1)
    expected = F.layer_norm(pooled.movedim(1, -1), (8,), eps=1e-5).movedim(-1, 1)
    torch.testing.assert_close(stem(images), expected, rtol=1e-5, atol=1e-5)


def test_features_are_float32_in_a_half_precision_model() -> None:
    assert Stem(8).bfloat16()(torch.randn(1, 3, 16, 16, dtype=torch.bfloat16)).dtype == torch.float32
