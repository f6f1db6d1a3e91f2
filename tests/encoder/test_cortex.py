"""The cortex equals timm's code from the blocks to the head."""

import pytest
import timm
import torch
from torch import nn

from sparse_vlm.encoder import CortexConfig
from sparse_vlm.encoder.cortex import Cortex
from sparse_vlm.errors import UserError


@pytest.mark.parametrize(
    "architecture",
    [
        "vit_base_patch16_clip_quickgelu_224",
        "vit_base_patch16_siglip_224",
        "vit_base_patch14_reg4_dinov2",
        "vit_medium_patch16_reg4_gap_256",
    ],
)
@torch.no_grad()
def test_the_cortex_computes_what_the_whole_vit_computes_after_its_embedding(architecture: str) -> None:
    """Run the same tokens through timm's forward pass (blocks to head) and through ours, with the same weights."""
    torch.manual_seed(0)
    whole = timm.create_model(architecture, depth=2, embed_dim=64, num_heads=2, num_classes=5).eval()
    config = CortexConfig(architecture, depth=2, width=64, heads=2, head_dim=5)
    cortex = Cortex(config).eval()
    kept = {key: value for key, value in whole.state_dict().items() if key in cortex.trunk.state_dict()}
    cortex.trunk.load_state_dict(kept)

    latent = torch.randn(2, 6, 64)
    entering = latent
    if cortex.register_embeddings is not None:
        nn.init.normal_(cortex.register_embeddings)
        entering = torch.cat([cortex.register_embeddings.expand(2, 4, -1), entering], dim=1)
    if cortex.cls_embedding is not None:
        nn.init.normal_(cortex.cls_embedding)
        entering = torch.cat([cortex.cls_embedding.expand(2, 1, -1), entering], dim=1)
    expected = whole.forward_head(whole.norm(whole.blocks(entering)))
    states = cortex(latent)
    torch.testing.assert_close(cortex.pool(states[-1]), expected)
    assert torch.equal(states[0], entering)
    assert len(states) == 3
    assert not {"pos_embed", "cls_token", "reg_token"} & cortex.trunk.state_dict().keys()
    assert cortex.num_prefix_tokens == whole.num_prefix_tokens == entering.shape[1] - 6


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"architecture": "vit_base_patch16_22"}, "Unknown timm architecture 'vit_base_patch16_22'. Did you mean"),
        ({"architecture": "resnet18", "options": {}}, "timm cannot build resnet18"),
        ({"options": {"init_valuez": 1}}, "timm cannot build vit_base_patch16_224 with {'init_valuez': 1}"),
        ({"architecture": "deit_tiny_distilled_patch16_224"}, "is a VisionTransformerDistilled"),
    ],
)
def test_other_architectures_are_refused(changes: dict, sentence: str) -> None:
    values = {"architecture": "vit_base_patch16_224", "depth": 1, "width": 64, "heads": 1}
    with pytest.raises(UserError) as caught:
        Cortex(CortexConfig(**(values | changes)))
    assert sentence in str(caught.value)


def test_without_outputs_the_head_is_empty() -> None:
    cortex = Cortex(CortexConfig("vit_base_patch16_224", depth=1, width=64, heads=1))
    assert isinstance(cortex.trunk.head, nn.Identity)
    assert cortex.pool(cortex(torch.randn(1, 3, 64))[-1]).shape == (1, 64)
