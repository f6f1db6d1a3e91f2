"""The table of variants: published numbers, and each LayerNorm eps, for which the parity tests are too coarse."""

import re

import pytest
import torch
from torch import nn

from sparse_vlm.encoder import SparseFormer, list_encoders
from sparse_vlm.encoder.preprocessing import CLIP_MEAN, IMAGENET_MEAN, INCEPTION_MEAN
from sparse_vlm.encoder.variants import VARIANTS, variant_config
from sparse_vlm.errors import UserError

# name: tokens (+ CLS), width, outputs, bias of the head, mean of the preprocessing, LayerNorm eps, head dim (None: 64
# heads)
PUBLISHED = {
    "sparseformer-v1-t": (49, 512, 1000, True, IMAGENET_MEAN, 1e-6, None),
    "sparseformer-v1-s": (64, 640, 1000, True, IMAGENET_MEAN, 1e-6, None),
    "sparseformer-v1-b": (81, 768, 1000, True, IMAGENET_MEAN, 1e-6, None),
    "sparseformer-augreg-b": (49, 768, 1000, True, INCEPTION_MEAN, 1e-5, 64),
    "sparseformer-augreg-l": (49, 1024, 1000, True, INCEPTION_MEAN, 1e-5, 64),
    "sparseformer-clip-b": (49, 768, 512, False, CLIP_MEAN, 1e-5, 64),
    "sparseformer-clip-l": (64, 1024, 768, False, CLIP_MEAN, 1e-5, 64),
}


def on_meta(name: str) -> SparseFormer:
    with torch.device("meta"):
        return SparseFormer(variant_config(name))


def test_the_list_names_every_variant() -> None:
    assert list_encoders() == list(VARIANTS) == list(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_variants_have_the_published_shape(name: str) -> None:
    tokens, width, outputs, bias, mean, eps, head_dim = PUBLISHED[name]
    encoder = on_meta(name)
    output = encoder(torch.empty(2, 3, 224, 224, device="meta"))
    assert output.tokens.shape == (2, tokens, width)
    assert output.pooled.shape == (2, outputs)
    assert (encoder.cortex.trunk.head.bias is not None) == bias
    assert encoder.config.preprocessing.mean == mean
    assert (encoder.config.preprocessing.resize, encoder.config.preprocessing.crop) == (256, 224)
    norms = {key: module.eps for key, module in encoder.named_modules() if isinstance(module, nn.LayerNorm)}
    assert {key: value for key, value in norms.items() if value != eps} == {}
    assert len(norms) > 2 * encoder.config.cortex.depth
    for module in encoder.modules():
        if hasattr(module, "qkv"):
            assert (module.num_heads == 64) if head_dim is None else (module.head_dim == head_dim)


@pytest.mark.parametrize("name", PUBLISHED)
def test_quick_gelu_is_in_the_cortex_of_clip_only(name: str) -> None:
    activations = {
        (key.startswith("cortex"), type(module.act).__name__)
        for key, module in on_meta(name).named_modules()
        if hasattr(module, "fc1")
    }
    assert activations == {(True, "QuickGELU" if "clip" in name else "GELU"), (False, "GELU")}


@pytest.mark.parametrize(("name", "millions"), [("t", 32), ("s", 48), ("b", 81)])
def test_v1_has_as_many_parameters_as_published(name: str, millions: int) -> None:
    assert round(on_meta(f"sparseformer-v1-{name}").num_parameters / 1e6) == millions


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=re.escape("'sparseformer-v1-x'. Did you mean 'sparseformer-v1-")):
        variant_config("sparseformer-v1-x")
