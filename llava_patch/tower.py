"""The vision tower: a SparseFormer behind the interface of LLaVA's CLIPVisionTower."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from llava_patch.image_processor import TowerImageProcessor
from llava_patch.names import parse_tower_name
from llava_patch.weights import encoder_config, encoder_from_checkpoint, open_encoder
from sparse_vlm.devices import choose_device
from sparse_vlm.encoder import SparseFormer, SparseFormerConfig
from sparse_vlm.encoder.model import select_hidden_states
from sparse_vlm.errors import UserError, unknown_choice

SELECT_FEATURES = ("patch", "cls_patch")
RECORD = "mm_sparseformer"  # field of LLaVA's config.json: the encoder's numbers, written when training starts


@dataclass(frozen=True)
class TowerConfig:
    """What LLaVA reads of a tower's configuration.

    Attributes:
        image_size: side of the pictures in pixels.
        hidden_size: channels C of a visual token.
    """

    image_size: int
    hidden_size: int


class SparseFormerTower(nn.Module):
    """Pictures -> visual tokens float[B, n, C] of the encoder's hidden state `mm_vision_select_layer`.

    Weights are never loaded here when LLaVA builds a model from a checkpoint (it does so on the meta device, where they
    would be lost), but by `load_model`: the checkpoint's own, possibly tuned, or else what the name stands for.

    Args:
        name: see `parse_tower_name`.
        args: LLaVA's model configuration (reload) or its model arguments (training).
        delay_load: whether `load_model` is called later anyway.

    Raises:
        UserError: a name, layer, feature or way of merging that does not exist for a SparseFormer.
    """

    def __init__(self, name: str, args: Any, delay_load: bool = False) -> None:
        super().__init__()
        self.is_loaded = False
        self.vision_tower_name = name
        self.tower_name = parse_tower_name(name)
        self.select_layer: int = args.mm_vision_select_layer
        self.select_feature: str = getattr(args, "mm_vision_select_feature", "patch")
        recorded = getattr(args, RECORD, None)
        self.encoder_config = SparseFormerConfig.from_dict(recorded) if recorded else encoder_config(self.tower_name)
        from_checkpoint = isinstance(args, PretrainedConfig)
        self._checkpoint = getattr(args, "_name_or_path", "") if from_checkpoint else ""
        self._check(args)
        preprocessing = self.encoder_config.preprocessing
        image_size = self.tower_name.image_size or preprocessing.crop
        self.image_processor = TowerImageProcessor(preprocessing, image_size, self.tower_name.aspect)
        if not delay_load and not from_checkpoint:
            self.load_model()

    def _check(self, args: Any) -> None:
        depth = self.encoder_config.cortex.depth
        if not -depth - 1 <= self.select_layer <= depth:
            raise UserError(
                f"mm_vision_select_layer is {self.select_layer}, but {self.vision_tower_name} has {depth} inherited "
                f"blocks, so {-depth - 1} to {depth}: -1 is what leaves the last block, -2 what enters it."
            )
        if self.select_feature not in SELECT_FEATURES:
            raise unknown_choice("mm_vision_select_feature", self.select_feature, SELECT_FEATURES)
        merge = getattr(args, "mm_patch_merge_type", "flat")
        if merge != "flat":
            raise UserError(f"mm_patch_merge_type is {merge!r}: {self._no_grid()}")
        width = getattr(args, "mm_hidden_size", self.hidden_size)
        if isinstance(args, PretrainedConfig) and width != self.hidden_size:
            raise UserError(
                f"The checkpoint's projector takes tokens of {width} channels (mm_hidden_size), "
                f"{self.vision_tower_name} gives {self.hidden_size}: it was trained with another tower."
            )

    def load_model(self, device_map: Any = None) -> None:
        """Loads the weights, once; frozen, as LLaVA's towers are.

        Args:
            device_map: None: the CPU; "auto": the accelerator where there is one; a device; or {"": device}.

        Raises:
            UserError: weights that are not there, cannot be fetched, or do not fit.
        """
        if self.is_loaded:
            return
        encoder = encoder_from_checkpoint(self._checkpoint, self.encoder_config) if self._checkpoint else None
        if encoder is None:
            encoder = open_encoder(self.tower_name)
            self._check_numbers(encoder.config)
        self.vision_tower = encoder.requires_grad_(False)
        device = device_map.get("", "auto") if isinstance(device_map, dict) else device_map
        if device == "auto":
            device = choose_device()
        if device is not None:
            self.vision_tower.to(device)
        self.is_loaded = True

    def _check_numbers(self, config: SparseFormerConfig) -> None:
        """A checkpoint's projector and language model know the tokens that they were trained with."""
        found, expected = config.to_dict(), self.encoder_config.to_dict()
        differences = [
            f"{part}.{name} was {value}, is {found[part][name]}"
            for part in ("stem", "focus", "cortex")
            for name, value in expected[part].items()
            if found[part][name] != value
        ]
        if differences:
            raise UserError(
                f"The checkpoint was trained with another encoder than {self.vision_tower_name} is now "
                f"({', '.join(differences)}). Put the old encoder back, or train again."
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # LLaVA's LoRA reload loads what was trained beside the adapters, a tuned tower included, before load_model.
        if not self.is_loaded and any(key.startswith(f"{prefix}vision_tower.") for key in state_dict):
            self.load_model(device_map="auto")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, images: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        """float[B, 3, H, W] -> float[B, n, C]; a list of float[3, H, W] -> a list of float[1, n, C]; dtypes stay.

        Gradients flow where the tower's parameters require them.
        """
        if isinstance(images, list):
            return [self._encode(image[None]) for image in images]
        return self._encode(images)

    def _encode(self, images: Tensor) -> Tensor:
        trains = any(parameter.requires_grad for parameter in self.vision_tower.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains):
            inputs = images.to(device=self.device, dtype=self.dtype)
            return self._tokens(inputs).to(images.dtype)

    def _tokens(self, images: Tensor) -> Tensor:
        encoder: SparseFormer = self.vision_tower
        (tokens,) = select_hidden_states(encoder, images, [self.select_layer], self.tower_name.aspect)
        latent, prefix = tokens[:, encoder.num_prefix_tokens :], encoder.num_prefix_tokens - encoder.num_register_tokens
        return latent if self.select_feature == "patch" else torch.cat([tokens[:, :prefix], latent], dim=1)

    @property
    def dummy_feature(self) -> Tensor:
        """Zeros, float[1, C]."""
        return torch.zeros(1, self.hidden_size, device=self.device, dtype=self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Of the pictures inside; coordinates are float32 whatever it is."""
        return self.vision_tower.stem.conv.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.vision_tower.stem.conv.weight.device

    @property
    def config(self) -> TowerConfig:
        """Readable before the weights are loaded."""
        return TowerConfig(self.image_processor.crop_size["height"], self.hidden_size)

    @property
    def hidden_size(self) -> int:
        """Channels C of a visual token."""
        return self.encoder_config.cortex.width

    @property
    def num_patches(self) -> int:
        """Latent tokens n, whatever the picture's size."""
        return self.encoder_config.focus.tokens

    @property
    def num_patches_per_side(self) -> int:
        """There is none.

        Raises:
            UserError: always.
        """
        raise UserError(f"num_patches_per_side was asked for: {self._no_grid()}")

    def _no_grid(self) -> str:
        return (
            f"the {self.num_patches} tokens of {self.vision_tower_name} lie on no grid, so they cannot be merged "
            "spatially; use --mm_patch_merge_type flat (and a larger image_size instead of anyres tiles)."
        )
