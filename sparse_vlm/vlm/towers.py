"""A directory → the vision tower of a VLM: a SparseFormer, or the dense ViT of an open_clip model beside it."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedModel

from sparse_vlm.encoder import Preprocessing, SparseFormer
from sparse_vlm.encoder.checkpoints import load_strictly
from sparse_vlm.encoder.runtime.cuda_graphs import optimize_for_inference
from sparse_vlm.errors import UserError, one_line
from sparse_vlm.vlm.vision import SparseFormerVisionModel

OPEN_CLIP_CONFIG = "open_clip_config.json"


class VisionTower(NamedTuple):
    """What a VLM takes of a vision encoder.

    Attributes:
        model: with transformers' interface; its configuration becomes the VLM's `vision_config`.
        preprocessing: what belongs to the weights.
        depth: number of blocks; hidden state 0 enters the first, hidden state `depth` leaves the last.
    """

    model: PreTrainedModel
    preprocessing: Preprocessing
    depth: int


def open_tower(directory: str | Path, aspect: str = "crop") -> VisionTower:
    """Opens a vision encoder by what the directory holds; its name means nothing.

    Args:
        directory: of `SparseFormer.save_pretrained` (config.json), or of open_clip (open_clip_config.json and the
            weights beside it) with open_clip's own VisionTransformer as the image side.
        aspect: of the pictures, "crop" or "native" (`SparseFormerVisionConfig`).

    Raises:
        UserError: it is neither, incomplete, its image side is another network, or it cannot see that aspect.
    """
    directory = Path(directory)
    if (directory / OPEN_CLIP_CONFIG).is_file():
        if aspect != "crop":
            raise UserError(f"The ViT in {directory} sees squares only: aspect {aspect!r} needs a SparseFormer.")
        return _open_dense(directory)
    if directory.is_dir() and not (directory / "config.json").is_file():
        raise UserError(
            f"{directory} holds no vision encoder: neither a SparseFormer (config.json) nor an open_clip model "
            f"({OPEN_CLIP_CONFIG})."
        )
    encoder = SparseFormer.from_pretrained(directory)
    model = SparseFormerVisionModel.from_encoder(encoder, aspect)
    return VisionTower(model, encoder.config.preprocessing, encoder.config.cortex.depth)


def use_cuda_graphs(model: Any) -> None:
    """Lets a VLM's SparseFormer run from CUDA graphs (`optimize_for_inference`): the same tokens, sooner for one image.

    Args:
        model: of `load_vlm`, on a CUDA device.

    Raises:
        UserError: it is elsewhere, or its vision tower is not a SparseFormer.
    """
    tower = getattr(model.model, "vision_tower", None)
    if not isinstance(tower, SparseFormerVisionModel):
        raise UserError(f"CUDA graphs are for a SparseFormer, and the vision tower is a {type(tower).__name__}.")
    if tower.device.type != "cuda":
        raise UserError(f"CUDA graphs need a CUDA device, and the model is on {tower.device}: add --device cuda.")
    optimize_for_inference(tower.encoder)


def _open_dense(directory: Path) -> VisionTower:
    """open_clip's ViT as transformers' CLIPVisionModel: the same numbers (tests/vlm/test_towers.py)."""
    visual, preprocessing = _open_clip_visual(directory)
    config = _clip_vision_config(visual, source=str(directory))
    model = CLIPVisionModel(config)
    load_strictly(model, _clip_vision_weights(visual.state_dict()), source=f"the image side of {directory}")
    return VisionTower(model.eval(), preprocessing, config.num_hidden_layers)


def _open_clip_visual(directory: Path) -> tuple[Any, Preprocessing]:
    """The image side of an open_clip directory, and its preprocessing."""
    try:
        import open_clip
    except ImportError as error:
        raise UserError(f"{directory} is an open_clip model: pip install open_clip_torch to read it.") from error
    try:
        clip = open_clip.create_model(f"local-dir:{directory}", require_pretrained=True)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"open_clip cannot open {directory}: {one_line(error)}") from error
    if not isinstance(clip.visual, open_clip.transformer.VisionTransformer):
        raise UserError(
            f"The image side of {directory} is a {type(clip.visual).__name__}: only open_clip's own "
            "VisionTransformer can become a dense vision tower."
        )
    values = open_clip.get_model_preprocess_cfg(clip)
    height, width = clip.visual.image_size
    if height != width:
        raise UserError(
            f"{directory} prepares images by resize_mode {values['resize_mode']!r} to {height}×{width} pixels: "
            "only squares are supported."
        )
    preprocessing = Preprocessing(
        height, height, values["mean"], values["std"], values["interpolation"], values["resize_mode"]
    )
    return clip.visual, preprocessing


def _clip_vision_config(visual: Any, source: str) -> CLIPVisionConfig:
    """The numbers, read off the modules."""
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
    """transformers' name of an activation, which no weight would betray."""
    kind = type(module).__name__
    if kind == "QuickGELU":
        return "quick_gelu"
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu_pytorch_tanh"
    raise UserError(f"The activation {kind} of {source} is not known here: QuickGELU or GELU.")


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
    """open_clip's names → transformers'; a name that has no counterpart stays, so that strict loading names it.

    `proj`, from the last CLS token to the common space, has no place in CLIPVisionModel and gives no visual token.
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
