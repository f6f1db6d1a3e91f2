"""Vision towers with random weights at any image size: SparseFormers, and the dense ViTs of timm and open_clip.

sparseformer-clip-l                           a SparseFormer variant, at the size of its preprocessing
timm:vit_large_patch14_clip_quickgelu_224     any VisionTransformer of timm, at its own size
open_clip:ViT-L-14-quickgelu                  any of open_clip's own ViTs
NAME@336                                      at 336 × 336 pixels
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.variants import variant_config
from sparse_vlm.errors import UserError, one_line, unknown_choice
from sparse_vlm.measure.timing import gmacs_of


@dataclass(frozen=True)
class Tower:
    """Name and numbers of a vision tower, which is not built yet.

    Attributes:
        name: as at the top of this file, without the size.
        image_size: side length of the image in pixels.
        tokens: visual tokens of an image, without CLS and registers.
        width: channels of a token.
        gmacs: 1e9 multiply-accumulates of one image: convolutions, linears and attention (sampling is not counted).
        parameters: number of parameters.
    """

    name: str
    image_size: int
    tokens: int
    width: int
    gmacs: float
    parameters: int

    def __str__(self) -> str:
        return f"{self.name}@{self.image_size}"

    def build(self) -> nn.Module:
        """Build the model with random weights, in evaluation mode."""
        return _build(self.name, self.image_size).eval()

    @property
    def sparse(self) -> bool:
        """True for a SparseFormer."""
        return ":" not in self.name


def open_tower(text: str, image_size: int | None = None) -> Tower:
    """Parse NAME or NAME@SIZE, and count operations and parameters on the meta device.

    Args:
        text: see the top of this file.
        image_size: image size unless `text` names one (default: the tower's own).
    """
    name, at, size = text.partition("@")
    if at and not size.isdecimal():
        raise UserError(f"The image size in {text!r} is not a whole number: write e.g. {name}@336.")
    pixels = int(size) if at else image_size
    try:
        with torch.device("meta"):
            model = _build(name, pixels).eval()
        own_size, tokens, width = _geometry(model)
        side = pixels or own_size
        return Tower(name, side, tokens, width, count_gmacs(model, side), count_parameters(model))
    except (AssertionError, RuntimeError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"{name} cannot have images of {pixels or 'its own'} pixels: {one_line(error)}") from error


def count_gmacs(model: nn.Module, image_size: int) -> float:
    """Count the multiply-accumulates of one image, in units of 1e9; `model` is on the meta device."""
    return gmacs_of(lambda: model(torch.empty(1, 3, image_size, image_size, device="meta")))


def count_parameters(model: nn.Module) -> int:
    """Count the parameters; shared ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _geometry(model: nn.Module) -> tuple[int, int, int]:
    """Return the image size, the visual tokens of an image, and the channels of a token."""
    visual: Any = model  # the libraries do not annotate these attributes
    if isinstance(model, SparseFormer):
        config = model.config
        return config.preprocessing.crop, config.focus.tokens, config.cortex.width
    if isinstance(model, VisionTransformer):
        return visual.patch_embed.img_size[0], visual.patch_embed.num_patches, visual.embed_dim
    return visual.image_size[0], math.prod(visual.grid_size), visual.conv1.out_channels


def _build(name: str, image_size: int | None) -> nn.Module:
    library, _, model = name.rpartition(":")
    if library not in BUILDERS:
        raise unknown_choice("library of a vision tower", library, filter(None, BUILDERS))
    if image_size is not None and image_size < 1:
        raise UserError(f"{name} cannot have images of {image_size} pixels.")
    return BUILDERS[library](model, image_size)


def _build_ours(name: str, image_size: int | None) -> nn.Module:
    """Build a variant; its weights do not depend on the image size."""
    return SparseFormer(variant_config(name))


def _build_timm(name: str, image_size: int | None) -> nn.Module:
    """Build a ViT with the head of its first pretrained weights; SigLIP's have only attention pooling."""
    if not timm.is_model(name):
        raise unknown_choice("timm model", name, timm.list_models("vit*"))
    head = timm.get_pretrained_cfg(name)
    size: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    model = timm.create_model(name, num_classes=head.num_classes if head else 0, **size)
    if type(model) is not VisionTransformer:
        raise UserError(f"timm:{name} is a {type(model).__name__}: only VisionTransformers are compared here.")
    return model


def _build_open_clip(name: str, image_size: int | None) -> nn.Module:
    """Build the image encoder only; open_clip warns that its weights are random."""
    import open_clip  # an extra

    if name not in open_clip.list_models():
        raise unknown_choice("open_clip model", name, open_clip.list_models())
    device = torch.get_default_device()  # open_clip moves a model to its own default otherwise
    visual = open_clip.create_model(name, force_image_size=image_size, device=device).visual
    if not isinstance(visual, open_clip.transformer.VisionTransformer):
        raise UserError(f"open_clip:{name} has a {type(visual).__name__} as its image encoder: use timm's name for it.")
    return visual


BUILDERS: dict[str, Callable[[str, int | None], nn.Module]] = {
    "": _build_ours,
    "timm": _build_timm,
    "open_clip": _build_open_clip,
}
