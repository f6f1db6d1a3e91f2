"""The projector: visual tokens → embeddings of the language model."""

from collections import OrderedDict
from typing import Any

from torch import nn
from transformers.activations import ACT2FN

from sparse_vlm.vlm.configuration import SparseVLMConfig


def build_projector(config: SparseVLMConfig) -> nn.Sequential:
    """Create the projector: visual tokens float[..., C] -> LLM embeddings. Layer -2 is not normalized, so the projector
    begins with a LayerNorm."""
    vision: Any = config.vision_config
    text: Any = config.text_config
    layers = 1 if isinstance(config.vision_feature_layer, int) else len(config.vision_feature_layer)
    width, out = vision.hidden_size * layers, text.hidden_size
    parts: OrderedDict[str, nn.Module] = OrderedDict(norm=nn.LayerNorm(width), linear_1=nn.Linear(width, out))
    if config.projector_type == "mlp2x_gelu":
        parts["act"] = ACT2FN[config.projector_hidden_act]
        parts["linear_2"] = nn.Linear(out, out)
    return nn.Sequential(parts)
