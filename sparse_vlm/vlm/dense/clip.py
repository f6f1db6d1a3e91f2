"""open_clip's VisionTransformer as transformers' CLIPVisionModel, as in LLaVA-1.5."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from sparse_vlm.encoder import Preprocessing
from sparse_vlm.encoder.checkpoints import load_strictly
from sparse_vlm.errors import UserError


def open_clip_vision(directory: Path) -> tuple[CLIPVisionModel, Preprocessing]:
    """Convert the ViT of an open_clip directory to transformers' CLIPVisionModel, which computes the same hidden
    states, and return it with its preprocessing."""
    visual, preprocessing = _open_clip_visual(directory)
    config = _clip_vision_config(visual, source=str(directory))
    model = CLIPVisionModel(config)
    load_strictly(model, _clip_vision_weights(visual.state_dict()), source=f"the image side of {directory}")
    return model.eval(), preprocessing


def _open_clip_visual(directory: Path) -> tuple[Any, Preprocessing]:
    """Open the image side of an open_clip directory, and its preprocessing."""
    try:
        import open_clip

        from sparse_vlm.bootstrap.teachers.open_clip import create_clip
    except ImportError as error:
        raise UserError(f"{directory} is an open_clip model: pip install open_clip_torch to read it.") from error
    clip = create_clip(str(directory), f"local-dir:{directory}", require_pretrained=True)
    if not isinstance(clip.visual, open_clip.transformer.VisionTransformer):
        raise UserError(
            f"The image side of {directory} is a {type(clip.visual).__name__}. Only open_clip's own VisionTransformer "
            "can become a dense vision tower."
        )
    values = open_clip.get_model_preprocess_cfg(clip)
    height, width = clip.visual.image_size
    if height != width:
        raise UserError(
            f"{directory} resizes images by resize_mode {values['resize_mode']!r} to {height}×{width} pixels. Only "
            "squares are supported."
        )
    preprocessing = Preprocessing(
        height, height, values["mean"], values["std"], values["interpolation"], values["resize_mode"]
    )
    return clip.visual, preprocessing


def _clip_vision_config(visual: Any, source: str) -> CLIPVisionConfig:
    """Read the configuration off the modules."""
    block = visual.transformer.resblocks[0]
    return CLIPVisionConfig(
        hidden_size=visual.conv1.out_channels,
        intermediate_size=block.mlp.c_fc.out_features,
        projection_dim=visual.output_dim,
        num_hidden_layers=len(visual.transformer.resblocks),
        num_attention_heads=block.attn.num_heads,
        image_size=visual.image_size[0],
        patch_size=visual.patch_size[0],
        hidden_act=_activation(block.mlp.gelu, source),
        layer_norm_eps=block.ln_1.eps,
    )


def _activation(module: nn.Module, source: str) -> str:
    """Return transformers' name of an activation. A wrong one would load without an error."""
    kind = type(module).__name__
    if kind == "QuickGELU":
        return "quick_gelu"
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu_pytorch_tanh"
    raise UserError(f"The activation {kind} of {source} is not supported, only QuickGELU and GELU.")


NAMES = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1": "embeddings.patch_embedding",
    "ln_pre": "pre_layrnorm",
    "ln_post": "post_layernorm",
    "transformer.resblocks": "encoder.layers",
}
NAMES_IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn": "self_attn",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def _clip_vision_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename open_clip's weights to transformers' names.

    A name without a counterpart is kept, so that strict loading reports it. `proj`, the projection of CLS to the
    common space, is dropped: it affects no visual token.
    """
    converted: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if name == "proj":
            continue
        new = _rename(name, NAMES)
        if new.startswith("encoder.layers."):
            encoder, layers, index, rest = new.split(".", 3)
            new = f"{encoder}.{layers}.{index}.{_rename(rest, NAMES_IN_BLOCK)}"
        if ".in_proj_" in new:
            for part, rows in zip("qkv", torch.chunk(weight, 3), strict=True):
                converted[new.replace("in_proj_", f"{part}_proj.")] = rows.clone()
        else:
            converted[new] = weight
    return converted


def _rename(name: str, table: dict[str, str]) -> str:
    for old, new in table.items():
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name
