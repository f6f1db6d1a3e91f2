"""Teachers from timm, and which of its models can be inherited."""

import json
import math
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from timm.models import get_model_args
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

from sparse_vlm.bootstrap.teachers.teacher import Teacher, require_whole_patches, square_side
from sparse_vlm.encoder import CortexConfig, Preprocessing
from sparse_vlm.encoder.checkpoints import load_strictly, read_weights
from sparse_vlm.errors import UserError, one_line, unknown_choice

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
RESIZE_MODES = {"center": "shortest"}  # timm's name -> ours, if they differ
# Arguments of a timm model about its input, and those that are fields of CortexConfig.
NOT_OPTIONS = ("img_size", "in_chans", "dynamic_img_size", "depth", "embed_dim", "num_heads", "num_classes")


def open_timm(name: str, file: Path | None, pretrained: bool, image_size: int | None) -> Teacher:
    """Open a teacher by its name in timm.

    Args:
        name: NAME or NAME.TAG.
        file: weights to load strictly instead of timm's. Mean, std and licence are those of the tag; without a tag,
            mean and std are those of timm's default tag, and the licence is unknown.
        pretrained, image_size: see `open_teacher`.
    """
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise unknown_choice("timm model", architecture, timm.list_models())
    tags = [known.partition(".")[2] for known in timm.list_models(f"{architecture}.*", pretrained=True)]
    if tag and tag not in tags:
        raise unknown_choice(f"pretrained tag of timm's {architecture}", tag, tags)
    shown = f"timm:{name}@{file.name}" if file else f"timm:{name}"
    teacher = _teacher(shown, name, file, pretrained, image_size)
    if file and not tag:
        teacher.licence = ""  # timm's default tag need not describe these weights
    return teacher


def open_timm_directory(directory: Path, pretrained: bool, image_size: int | None) -> Teacher:
    """Open a teacher from a directory written by `timm.models.save_for_hf`: config.json and weights."""
    try:
        architecture = json.loads((directory / "config.json").read_text(encoding="utf-8")).get("architecture", "")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{directory / 'config.json'} is not a valid JSON object: {one_line(error)}") from error
    if not timm.is_model(architecture):
        raise UserError(
            f"{directory} does not contain a teacher: timm does not know the architecture {architecture!r} of its "
            "config.json."
        )
    file = next((directory / name for name in WEIGHT_FILES if (directory / name).is_file()), None)
    if pretrained and file is None:
        raise UserError(f"{directory} does not contain weights: it has neither {' nor '.join(WEIGHT_FILES)}.")
    return _teacher(directory.name, f"local-dir:{directory}", file, pretrained, image_size)


def _teacher(shown: str, name: str, file: Path | None, pretrained: bool, image_size: int | None) -> Teacher:
    with torch.device("meta"):  # refuse models that cannot be inherited before downloading weights
        model = _create(shown, name)
        require_inheritable(model, shown)
    require_whole_patches(image_size, patch_of(model), shown)
    trunk = _create(shown, name, **({} if image_size is None else {"img_size": image_size}))
    if pretrained:
        source = f"{file} as {name}" if file else shown
        weights = read_weights(file) if file else _create(shown, name, pretrained=True).state_dict()
        try:  # antialias=False: how DINOv2's authors resample position embeddings
            weights = checkpoint_filter_fn(weights, trunk, adapt_layer_scale=True, antialias=False)
        except Exception as error:  # raises almost anything for the weights of another model
            raise UserError(
                f"The weights of {source} do not fit ({one_line(error)}). Is it another variant?"
            ) from error
        load_strictly(trunk, weights, source=source)
    licence = trunk.pretrained_cfg.get("license") or ""
    return Teacher(shown, trunk, cortex_of(trunk), _preprocessing_of(trunk, shown), licence)


def _create(shown: str, name: str, **options: Any) -> Any:
    try:
        return timm.create_model(name, **options)
    except (OSError, RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise UserError(f"timm cannot open {shown}: {one_line(error)}") from error


def require_inheritable(model: nn.Module, shown: str) -> None:
    """Raise a UserError with the reason unless the blocks of `model` work on latent tokens, which have no grid."""
    kind = type(model).__name__
    if getattr(model, "rope", None) is not None:
        reason = (
            "its blocks rotate queries and keys by their position on the patch grid (rotary positions), and latent "
            "tokens have no such position"
        )
    elif kind == "VisionTransformerDistilled":
        reason = "its second class token with its own head is not supported; use the model without distillation"
    elif not hasattr(model, "blocks"):
        reason = "its stages (convolutions, windows) need a grid of features, and latent tokens have none"
    elif type(model) is not VisionTransformer:
        reason = "only the blocks of timm's plain VisionTransformer map a sequence of tokens to a sequence of tokens"
    elif any(hasattr(module, "lambda_init") for module in model.blocks.modules()):
        reason = "its differential attention depends on the index of a block, which changes when blocks are dropped"
    else:
        return
    raise UserError(f"{shown} (class {kind}) cannot be inherited: {reason}.")


def patch_of(trunk: Any) -> tuple[int, int]:
    """Height and width in pixels of the patches of a timm VisionTransformer."""
    return trunk.patch_embed.feat_ratio(as_scalar=False)


def cortex_of(trunk: Any) -> CortexConfig:
    """Configuration of a timm VisionTransformer."""
    heads = next(module.num_heads for module in trunk.blocks[0].modules() if hasattr(module, "num_heads"))
    is_linear = isinstance(trunk.head, nn.Linear)
    return CortexConfig(
        architecture=trunk.pretrained_cfg["architecture"],
        depth=len(trunk.blocks),
        width=trunk.embed_dim,
        heads=heads,
        head_dim=trunk.head.out_features if is_linear else 0,
        head_bias=is_linear and trunk.head.bias is not None,
        options={name: value for name, value in get_model_args(trunk).items() if name not in NOT_OPTIONS},
    )


def _preprocessing_of(trunk: Any, shown: str) -> Preprocessing:
    data = resolve_model_data_config(trunk)
    crop = square_side(trunk.patch_embed.img_size, shown)
    resize_mode = RESIZE_MODES.get(data["crop_mode"], data["crop_mode"])
    resize = math.floor(crop / data["crop_pct"])  # rounded like timm
    return Preprocessing(resize, crop, data["mean"], data["std"], data["interpolation"], resize_mode)
