"""Vision towers with random weights at any image size: SparseFormers, and the dense ViTs of timm and open_clip.

sparseformer-clip-l                           a SparseFormer variant, at the size of its preprocessing
ENCODER_DIR                                   your own SparseFormer's configuration, with random weights too
timm:vit_large_patch14_clip_quickgelu_224     any VisionTransformer of timm, at its own size
open_clip:ViT-L-14-quickgelu                  any of open_clip's own ViTs
NAME@336                                      at 336 × 336 pixels
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from sparse_vlm.encoder import SparseFormer, SparseFormerConfig
from sparse_vlm.encoder.checkpoints import load_config
from sparse_vlm.encoder.rois import lay_out_rois
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
        requested: True if `tokens` was requested, False if it is the tower's own number.
    """

    name: str
    image_size: int
    tokens: int
    width: int
    gmacs: float
    parameters: int
    requested: bool = False

    def __str__(self) -> str:
        name = f"{self.name}@{self.image_size}"
        return f"{name}, {self.tokens} tokens" if self.requested else name

    def build(self) -> nn.Module:
        """Build the model with random weights, in evaluation mode."""
        return _build(self.name, self.image_size, self.tokens if self.requested else None).eval()

    @property
    def sparse(self) -> bool:
        """True for a SparseFormer."""
        return _is_sparse(self.name)


def open_towers(
    texts: Sequence[str], image_sizes: Sequence[int] | None = None, tokens: Sequence[int] | None = None
) -> list[Tower]:
    """Open towers at several image sizes, and SparseFormers with several numbers of tokens; each tower once.

    Args:
        texts: see the top of this file.
        image_sizes: image sizes of the towers whose text names none (default: their own).
        tokens: numbers of latent tokens of the SparseFormers (default: their own). Dense ViTs keep theirs.

    Raises:
        UserError: a tower is unknown or cannot have this size or number, or `tokens` has no SparseFormer to apply to.
    """
    if tokens and not any(map(_is_sparse, texts)):
        raise UserError(
            f"The number of tokens of a dense ViT is fixed: name a SparseFormer beside {', '.join(texts)}, or leave "
            "out --tokens."
        )
    towers = [
        open_tower(text, size, count)
        for text in texts
        for size in image_sizes or (None,)
        for count in (tokens if tokens and _is_sparse(text) else (None,))
    ]
    return list(dict.fromkeys(towers))


def open_tower(text: str, image_size: int | None = None, tokens: int | None = None) -> Tower:
    """Parse NAME or NAME@SIZE, and count operations and parameters on the meta device.

    Args:
        text: see the top of this file.
        image_size: image size unless `text` names one (default: the tower's own).
        tokens: number of latent tokens of a SparseFormer (default: its own).
    """
    name, at, size = text.rpartition("@") if "@" in text and not Path(text).is_dir() else (text, "", "")
    if at and not size.isdecimal():
        raise UserError(f"The image size in {text!r} is not a whole number: write e.g. {name}@336.")
    pixels = int(size) if at else image_size
    try:
        with torch.device("meta"):
            model = _build(name, pixels, tokens).eval()
        own_size, count, width = _geometry(model)
        side = pixels or own_size
        gmacs = count_gmacs(model, side)
        return Tower(name, side, count, width, gmacs, count_parameters(model), requested=tokens is not None)
    except (AssertionError, RuntimeError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"{name} cannot have images of {pixels or 'its own'} pixels: {one_line(error)}") from error


def build_towers(towers: Sequence[Tower], device: torch.device, dtype: torch.dtype) -> list[nn.Module]:
    """Build models with random weights, in evaluation mode.

    SparseFormers that differ in image size and number of tokens only share their weights, so that any number of them
    fits into memory.
    """
    models: list[nn.Module] = []
    first: dict[str, nn.Module] = {}
    for tower in towers:
        if tower.sparse and tower.name in first:
            with torch.device("meta"):
                model = tower.build()
            rois = {"focus.initial_rois.weight": lay_out_rois(tower.tokens).to(device)}
            model.load_state_dict({**first[tower.name].state_dict(), **rois}, assign=True)
        else:
            model = first[tower.name] = tower.build().to(device, dtype)
        models.append(model)
    return models


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


def _is_sparse(name: str) -> bool:
    return ":" not in name or Path(name).is_dir()


def _build(name: str, image_size: int | None, tokens: int | None = None) -> nn.Module:
    if image_size is not None and image_size < 1:
        raise UserError(f"{name} cannot have images of {image_size} pixels.")
    if _is_sparse(name):  # its weights do not depend on the image size
        return SparseFormer(_with_tokens(load_config(name) if Path(name).is_dir() else variant_config(name), tokens))
    library, _, model = name.rpartition(":")
    if library not in BUILDERS:
        raise unknown_choice("library of a vision tower", library, BUILDERS)
    return BUILDERS[library](model, image_size)


def _with_tokens(config: SparseFormerConfig, tokens: int | None) -> SparseFormerConfig:
    """Set the number of latent tokens: an encoder with another number costs what one of this number costs."""
    if tokens is None or tokens == config.focus.tokens:
        return config
    if config.focus.generation == "v1":
        raise UserError(
            f"The {config.focus.tokens} tokens of a SparseFormer v1 have an embedding each, so it cannot have {tokens}."
        )
    return replace(config, focus=replace(config.focus, tokens=tokens))


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
    "timm": _build_timm,
    "open_clip": _build_open_clip,
}
