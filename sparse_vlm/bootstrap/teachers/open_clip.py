"""Teachers from open_clip: its own VisionTransformer, converted to timm's, or a timm model inside open_clip."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

from sparse_vlm.bootstrap.teachers.open_clip_weights import (
    PREPROCESSING,
    licence_of,
    readable_file,
    untagged_options,
    weights_options,
)
from sparse_vlm.bootstrap.teachers.teacher import Teacher, TextEncoder, require_whole_patches, square_side
from sparse_vlm.bootstrap.teachers.timm import cortex_of, patch_of, require_inheritable
from sparse_vlm.encoder import CortexConfig, Preprocessing
from sparse_vlm.encoder.checkpoints import load_strictly
from sparse_vlm.encoder.cortex import build_trunk
from sparse_vlm.errors import UserError, one_line, unknown_choice


def open_open_clip(name: str, file: Path | None, pretrained: bool, image_size: int | None) -> Teacher:
    """Open a teacher by its name in open_clip.

    Args:
        name: NAME/TAG; NAME is enough with a file or with random weights.
        file: weights to load strictly instead of those of the tag. Activation, preprocessing and licence are those of
            the tag; without a tag, see `untagged_options`, and the licence is unknown.
        pretrained, image_size: see `open_teacher`.
    """
    model, _, tag = name.partition("/")
    if model not in open_clip.list_models():
        raise unknown_choice("open_clip model", model, open_clip.list_models())
    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag and tag not in tags:
        raise unknown_choice(f"pretrained tag of open_clip's {model}", tag, tags)
    if pretrained and not tag and file is None:
        raise UserError(
            f"{model} has several pretrained weights: write open_clip:{model}/TAG with one of {', '.join(tags)}."
        )
    shown = f"open_clip:{name}@{file.name}" if file else f"open_clip:{name}"
    options = weights_options(model, tag) if tag else untagged_options(shown, model)
    if not pretrained:
        return _teacher(shown, model, image_size, **options)
    hub_path = open_clip.get_pretrained_cfg(model, tag).get("hf_hub", "")
    if file is None:
        return _teacher(shown, model, image_size, hub_path, pretrained=tag, **options)
    with readable_file(file) as weights:
        return _teacher(shown, model, image_size, hub_path, pretrained=str(weights), **options)


def open_open_clip_directory(directory: Path, pretrained: bool, image_size: int | None) -> Teacher:
    """Open a teacher from an open_clip directory: open_clip_config.json and weights."""
    options = {"load_weights": pretrained, "require_pretrained": pretrained}
    return _teacher(directory.name, f"local-dir:{directory}", image_size, directory, **options)


def _teacher(shown: str, name: str, image_size: int | None, origin: str | Path = "", **options: Any) -> Teacher:
    config = _model_config(shown, name, image_size)
    if options.get("force_quick_gelu"):
        config["quick_gelu"] = True
    clip = create_clip(shown, name, force_image_size=image_size, **options)
    trunk, cortex = _trunk_of(clip.visual, shown)
    values = open_clip.get_model_preprocess_cfg(clip)
    crop = square_side(values["size"], shown)
    preprocessing = Preprocessing(crop, crop, **{key: values[key] for key in PREPROCESSING})
    clip.visual = nn.Identity()  # the trunk replaces it
    text = TextEncoder(clip, config, partial(open_tokenizer, shown, name))
    return Teacher(shown, trunk, cortex, preprocessing, licence_of(origin), text)


def _model_config(shown: str, name: str, image_size: int | None) -> dict[str, Any]:
    """Return open_clip's model_cfg, after refusing models that cannot be inherited, before weights are downloaded."""
    with user_errors(shown):
        config: Any = open_clip.get_model_config(name)
        vision = config["vision_cfg"] | {"timm_model_pretrained": False}
        with torch.device("meta"):
            visual = open_clip.model._build_vision_tower(config["embed_dim"], vision, config.get("quick_gelu", False))
        _require_inheritable(visual, shown)
        patch = patch_of(visual.trunk) if isinstance(visual, TimmModel) else visual.patch_size
        require_whole_patches(image_size, patch, shown)
    return config


def create_clip(shown: str, name: str, **options: Any) -> Any:
    """Call `open_clip.create_model`, and turn its errors into a UserError.

    Args:
        shown: name of the model in error messages.
        name: open_clip's name, or "local-dir:DIRECTORY".
        **options: further arguments of `open_clip.create_model`, e.g. for the weights.
    """
    with user_errors(shown):
        return open_clip.create_model(name, pretrained_text=False, **options)


def open_tokenizer(shown: str, name: str) -> Any:
    """Open the tokenizer of open_clip's model `name`. `shown` is its name in error messages."""
    with user_errors(f"the tokenizer of {shown}"):
        return open_clip.get_tokenizer(name)


@contextmanager
def user_errors(shown: str) -> Iterator[None]:
    """Turn any exception into a UserError: torch's unpickler can raise almost anything for damaged weights."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"open_clip cannot open {shown}: {one_line(error)}") from error


def _require_inheritable(visual: Any, shown: str) -> None:
    """Raise a UserError with the reason unless the image encoder is, or can become, a timm VisionTransformer."""
    if isinstance(visual, open_clip.transformer.VisionTransformer):
        problem = _foreign_part(visual)
    else:
        require_inheritable(visual.trunk if isinstance(visual, TimmModel) else visual, shown)
        problem = next((name for name, _ in visual.head.named_children() if name not in ("drop", "proj")), "")
    if problem:
        raise UserError(f"{shown} cannot be inherited: timm's VisionTransformer has no counterpart of its {problem}.")


def _foreign_part(visual: Any) -> str:
    """Name a part of open_clip's VisionTransformer that timm's lacks, or return ""."""
    block = visual.transformer.resblocks[0]
    if visual.attn_pool is not None:
        return "attentional pooling"
    if type(block) is not ResidualAttentionBlock:
        return f"blocks of the type {type(block).__name__}"
    return "" if visual.pool_type in ("tok", "avg") else f"pooling {visual.pool_type!r}"


def _trunk_of(visual: Any, shown: str) -> tuple[VisionTransformer, CortexConfig]:
    """Return the image encoder, with its projection, as a timm VisionTransformer, and its configuration."""
    if not isinstance(visual, TimmModel):
        return _convert(visual, shown)
    if hasattr(visual.head, "proj"):
        visual.trunk.head = visual.head.proj
    return visual.trunk, cortex_of(visual.trunk)


def _convert(visual: Any, shown: str) -> tuple[VisionTransformer, CortexConfig]:
    """Convert open_clip's ViT to timm's. timm's own code renames the weights; the modules give the configuration."""
    cortex = _cortex_of(visual)
    embedding = {"patch_size": visual.patch_size[0], "img_size": visual.image_size}
    trunk = build_trunk(replace(cortex, options={**cortex.options, **embedding}))
    renamed = {f"visual.{key.replace('.ls_', '.ls')}": value for key, value in visual.state_dict().items()}
    weights = checkpoint_filter_fn(renamed, trunk)
    weights.pop("head.bias")  # zeros that timm adds: this projection has no bias
    if not cortex.options["pre_norm"]:  # then timm has a bias for the patches, which open_clip never has
        weights["patch_embed.proj.bias"] = torch.zeros(cortex.width)
    if cortex.options["fc_norm"]:
        weights |= {f"fc_norm.{name}": weights.pop(f"norm.{name}") for name in ("weight", "bias")}
    load_strictly(trunk, weights, source=shown)
    return trunk, cortex


def _cortex_of(visual: Any) -> CortexConfig:
    block = visual.transformer.resblocks[0]
    width, averages = visual.conv1.out_channels, visual.pool_type == "avg"
    options: dict[str, Any] = {
        "mlp_ratio": block.mlp.c_fc.out_features / width,
        "global_pool": "avg" if averages else "token",
        "fc_norm": averages and visual.final_ln_after_pool,
        "pre_norm": not isinstance(visual.ln_pre, nn.Identity),
    }
    if not isinstance(block.ls_1, nn.Identity):
        options["init_values"] = 1.0
    quick_gelu = isinstance(block.mlp.gelu, QuickGELU)
    if not quick_gelu and block.mlp.gelu.approximate == "tanh":
        options["act_layer"] = "gelu_tanh"
    return CortexConfig(
        architecture="vit_base_patch16_clip_quickgelu_224" if quick_gelu else "vit_base_patch16_clip_224",
        depth=len(visual.transformer.resblocks),
        width=width,
        heads=block.attn.num_heads,
        head_dim=visual.output_dim,
        head_bias=False,
        options=options,
        norm_eps=None if block.ln_1.eps == 1e-5 else block.ln_1.eps,  # 1e-5 is the default of the architecture
    )
