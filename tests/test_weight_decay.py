"""Weight decay depends on the type of a weight's module, not on its name or dimensions."""

import timm
from torch import nn
from transformers.pytorch_utils import Conv1D

from sparse_vlm.encoder import SparseFormer
from sparse_vlm.weight_decay import decayed_weights


def names(model: nn.Module, ids: set[int]) -> set[str]:
    return {name for name, parameter in model.named_parameters() if id(parameter) in ids}


def test_only_the_matrices_of_linear_layers_and_convolutions_decay(tiny_encoder: SparseFormer) -> None:
    block = timm.create_model("vit_small_patch14_dinov2", depth=1, img_size=28).blocks[0]  # with layer scale
    model = nn.ModuleDict({"encoder": tiny_encoder, "block": block, "words": nn.Embedding(50, 16)})
    model["tied"] = nn.Linear(16, 50, bias=False)
    model["tied"].weight = model["words"].weight
    decayed = names(model, decayed_weights(model))
    left = {name.removeprefix("encoder.") for name, _ in model.named_parameters() if name not in decayed}
    assert {"encoder.stem.conv.weight", "block.attn.qkv.weight", "encoder.cortex.trunk.head.weight"} < decayed
    assert all(name.endswith(".weight") and "norm" not in name for name in decayed)
    assert {"focus.initial_rois.weight", "focus.initial_embedding", "cortex.cls_embedding", "words.weight"} < left
    assert {"block.ls1.gamma", "focus.repeated_unit.stage_embedding", "focus.last_unit.sampling.points.base"} < left


def test_other_linear_layers_can_be_named() -> None:
    model = nn.ModuleDict({"gpt": Conv1D(3, 4), "plain": nn.Linear(4, 3)})
    assert names(model, decayed_weights(model)) == {"plain.weight"}
    assert names(model, decayed_weights(model, also=(Conv1D,))) == {"plain.weight", "gpt.weight"}
