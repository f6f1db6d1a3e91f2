"""Vision towers of a VLM: a SparseFormer, or the dense ViT of an open_clip model to compare it with.

A dense ViT becomes transformers' own CLIPVisionModel, as in LLaVA-1.5. transformers' TimmWrapperModel does not serve:
it returns square feature maps without CLS, and its configuration names neither width nor patch size.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedModel

from sparse_vlm.encoder import Preprocessing, SparseFormer
from sparse_vlm.encoder.checkpoints import load_strictly
from sparse_vlm.encoder.runtime.cuda_graphs import optimize_for_inference
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.vision import SparseFormerVisionModel

OPEN_CLIP_CONFIG = "open_clip_config.json"


class VisionTower(NamedTuple):
    """A vision encoder as part of a VLM.

    Attributes:
        model: a vision model of transformers; its configuration becomes the VLM's `vision_config`.
        preprocessing: the preprocessing of the weights.
        depth: number of blocks. Hidden state 0 enters the first block, hidden state `depth` leaves the last one.
    """

    model: PreTrainedModel
    preprocessing: Preprocessing
    depth: int


def open_tower(directory: str | Path, aspect: str = "crop") -> VisionTower:
    """Open a vision encoder. The files in the directory determine its kind; the directory name is ignored.

    Args:
        directory: a directory of `SparseFormer.save_pretrained` (config.json), or of open_clip (open_clip_config.json
            and the weights) with open_clip's own VisionTransformer as the image side.
        aspect: "crop" or "native"; see `SparseFormerVisionConfig`.
    """
    directory = Path(directory)
    if (directory / OPEN_CLIP_CONFIG).is_file():
        if aspect != "crop":
            raise UserError(f"The ViT in {directory} sees squares only: aspect {aspect!r} needs a SparseFormer.")
        return _open_dense(directory)
    if directory.is_dir() and not (directory / "config.json").is_file():
        raise UserError(
            f"{directory} has no vision encoder: neither a SparseFormer (config.json) nor an open_clip model "
            f"({OPEN_CLIP_CONFIG})."
        )
    encoder = SparseFormer.from_pretrained(directory)
    model = SparseFormerVisionModel.from_encoder(encoder, aspect)
    return VisionTower(model, encoder.config.preprocessing, encoder.config.cortex.depth)


def use_cuda_graphs(model: Any) -> None:
    """Run a VLM's SparseFormer from CUDA graphs (`optimize_for_inference`): the same tokens, with lower latency.

    Args:
        model: returned by `load_vlm`, on a CUDA device.
    """
    tower = getattr(model.model, "vision_tower", None)
    if not isinstance(tower, SparseFormerVisionModel):
        raise UserError(f"CUDA graphs need a SparseFormer, but the vision tower is a {type(tower).__name__}.")
    if tower.device.type != "cuda":
        raise UserError(f"CUDA graphs need a CUDA device, and the model is on {tower.device}: add --device cuda.")
    optimize_for_inference(tower.encoder)


def _open_dense(directory: Path) -> VisionTower:
    """Convert open_clip's ViT to transformers' CLIPVisionModel, which computes the same hidden states."""
    visual, preprocessing = _open_clip_visual(directory)
    config = _clip_vision_config(visual, source=str(directory))
    model = CLIPVisionModel(config)
    load_strictly(model, _clip_vision_weights(visual.state_dict()), source=f"the image side of {directory}")
    return VisionTower(model.eval(), preprocessing, config.num_hidden_layers)


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
