"""Small models of every family of teachers with random weights, written in the directory formats of timm and open_clip.

Tests open them with the real loading code, without the hub.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from open_clip.model import CLIP, CustomTextCLIP
from safetensors.torch import save_file
from torch import nn

SMALL = {"depth": 3, "embed_dim": 64, "num_heads": 2, "img_size": 32}
OWN_VIT = {"layers": 3, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 32}
TEXT = {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 1}

TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "augreg": ("vit_large_patch16_384", SMALL | {"num_classes": 11}),
    "clip quickgelu (timm)": ("vit_large_patch14_clip_quickgelu_224", SMALL | {"num_classes": 12, "img_size": 28}),
    "clip gelu (timm)": ("vit_base_patch16_clip_224", SMALL | {"num_classes": 12}),
    "siglip (timm)": ("vit_base_patch16_siglip_224", SMALL | {"num_classes": 0}),
    "siglip 2, gelu tanh (timm)": ("vit_base_patch32_siglip_256", SMALL | {"num_classes": 0}),
    "siglip, average pool (timm)": ("vit_base_patch16_siglip_gap_224", SMALL | {"num_classes": 0}),
    "dinov2": ("vit_small_patch14_dinov2", SMALL | {"num_classes": 0, "img_size": 28}),
    "dinov2, registers": ("vit_large_patch14_reg4_dinov2", SMALL | {"num_classes": 0, "img_size": 28}),
    "dinov2, SwiGLU": ("vit_giant_patch14_dinov2", SMALL | {"num_classes": 0, "img_size": 28, "embed_dim": 96}),
    "registers and MLP by argument": ("vit_base_patch16_224", SMALL | {"mlp_ratio": 2, "reg_tokens": 3}),
    "mae": ("vit_base_patch16_224", SMALL | {"num_classes": 0}),
    "mae, mean of the patches": (
        "vit_base_patch16_224",
        SMALL | {"num_classes": 0, "global_pool": "avg", "fc_norm": False},
    ),
    "deit 3": ("deit3_small_patch16_224", SMALL | {"num_classes": 11}),
    "vitamin (timm)": ("vitamin_small_224", {"depth": 3, "img_size": 32, "num_classes": 12}),
    "average pool, fc_norm": ("vit_base_patch16_gap_224", SMALL | {"num_classes": 11}),
    "average pool, registers, no CLS": ("vit_medium_patch16_reg4_gap_256", SMALL | {"num_classes": 11}),
    "parallel blocks, RMSNorm": ("vit_base_patch16_xp_224", SMALL | {"num_classes": 11}),
}
OPEN_CLIP: dict[str, dict[str, Any]] = {
    "openai clip": {"quick_gelu": True, "vision_cfg": OWN_VIT},
    "laion and datacomp clip": {"vision_cfg": OWN_VIT},
    "clipa": {"vision_cfg": OWN_VIT | {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}},
    "LayerScale, GELU tanh, eps 1e-6": {
        "vision_cfg": OWN_VIT
        | {"ls_init_value": 1e-4, "act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-6}}
    },
    "siglip (open_clip)": {
        "custom_text": True,
        "embed_dim": 96,
        "init_logit_bias": -10,
        "vision_cfg": {"timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none", "image_size": 160},
    },
    "timm trunk, pooled in another way": {
        "custom_text": True,
        "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "linear", "image_size": 160},
    },
    "timm trunk, projection": {
        "custom_text": True,
        "vision_cfg": {"timm_model_name": "test_vit2", "timm_pool": "", "timm_proj": "linear", "image_size": 160},
    },
}
FAMILIES = [*TIMM, *OPEN_CLIP]


def _randomise(model: nn.Module) -> nn.Module:
    """Change weights that are initialised with 0, 1 or 1e-5 (biases, norms, layer scales), so that a lost one shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def write_family(family: str, directory: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """Write a teacher of the family to `directory`; return its library's function images -> final representation."""
    torch.manual_seed(0)
    if family in TIMM:
        architecture, args = TIMM[family]
        model = _randomise(timm.create_model(architecture, **args))
        timm.models.save_for_hf(model, directory, model_args=args, safe_serialization=True)
        return model
    config: dict[str, Any] = {"embed_dim": 24, "text_cfg": TEXT} | OPEN_CLIP[family]
    kind = CustomTextCLIP if config.get("custom_text") else CLIP
    clip: Any = _randomise(kind(**{name: value for name, value in config.items() if name != "custom_text"}))
    directory.mkdir(exist_ok=True)
    save_file({name: value.contiguous() for name, value in clip.state_dict().items()}, directory / "model.safetensors")
    preprocess = {
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.25, 0.3],
        "interpolation": "bilinear",
        "resize_mode": "squash",
    }
    (directory / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return clip.encode_image
