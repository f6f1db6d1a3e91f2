"""A SparseFormer with the interface of LLaVA's CLIPVisionTower."""

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
from sparse_vlm.encoder.batches import select_hidden_states
from sparse_vlm.errors import UserError, unknown_choice

SELECT_FEATURES = ("patch", "cls_patch")
RECORD = "mm_sparseformer"  # field of LLaVA's config.json with the encoder's configuration
# Options of LLaVA-NeXT that arrange tokens in rows and columns: the value that does so, and what to do instead.
GRID_OPTIONS: dict[str, tuple[Any, str]] = {
    "mm_resampler_type": ("spatial_pool", "Leave it out"),
    "mm_projector_type": ("pooler", "Use --mm_projector_type mlp2x_gelu"),
    "add_faster_video": (True, "Leave it out: every frame of a video keeps its tokens"),
}


@dataclass(frozen=True)
class TowerConfig:
    """Configuration of a tower, as LLaVA reads it.

    Attributes:
        image_size: side of the images in pixels.
        hidden_size: channels C of a visual token.
    """

    image_size: int
    hidden_size: int


class SparseFormerTower(nn.Module):
    """Images -> visual tokens float[B, n, C], the encoder's hidden state `mm_vision_select_layer`.

    When LLaVA builds a model from a checkpoint, it does so on the meta device, where loaded weights would be lost.
    `load_model` loads them later: the checkpoint's own, possibly tuned, or else those that the name stands for.

    Args:
        name: see `parse_tower_name`.
        args: LLaVA's model configuration (reload) or model arguments (training).
        delay_load: True if `load_model` is called later.

    Raises:
        UserError: the name, layer, feature, merge type or number of tokens does not exist for a SparseFormer, or the
            checkpoint's language model has no room for its tokens.
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
                f"blocks: use {-depth - 1} to {depth}. -1 is the output of the last block, -2 its input."
            )
        if self.select_feature not in SELECT_FEATURES:
            raise unknown_choice("mm_vision_select_feature", self.select_feature, SELECT_FEATURES)
        if self._requested_tokens is not None and self.encoder_config.focus.generation == "v1":
            raise UserError(
                f"{self.vision_tower_name} is a SparseFormer v1, whose {self.encoder_config.focus.tokens} tokens have "
                "an embedding each: leave out tokens=, or use a bootstrapped encoder."
            )
        self._check_grid(args)
        if not isinstance(args, PretrainedConfig):
            return
        self.check_context(args)
        width = getattr(args, "mm_hidden_size", self.hidden_size)
        if width != self.hidden_size:
            raise UserError(
                f"The checkpoint's projector expects tokens with {width} channels (mm_hidden_size), but "
                f"{self.vision_tower_name} has {self.hidden_size}: it was trained with another tower."
            )

    def _check_grid(self, args: Any) -> None:
        """Raise a UserError if an option needs tokens in rows and columns."""
        merge = getattr(args, "mm_patch_merge_type", "flat")
        if merge != "flat":
            raise UserError(
                f"mm_patch_merge_type is {merge!r}: {self._no_grid()} Use --mm_patch_merge_type flat, and a larger "
                "image_size instead of anyres tiles."
            )
        for option, (value, advice) in GRID_OPTIONS.items():
            if getattr(args, option, None) == value:
                raise UserError(f"{option} is {value!r}: {self._no_grid()} {advice}; tokens= sets their number.")

    def check_context(self, config: PretrainedConfig) -> None:
        """Raise a UserError if an image leaves no room for text in the language model with LLaVA's configuration.

        LLaVA would truncate the visual tokens without a word.
        """
        lengths = (getattr(config, name, None) for name in ("tokenizer_model_max_length", "max_position_embeddings"))
        limit = min((length for length in lengths if length is not None), default=None)
        if limit is not None and self.num_patches >= limit:
            raise UserError(
                f"An image has {self.num_patches} visual tokens from {self.vision_tower_name}, but the language "
                f"model takes {limit} tokens, text included: set tokens= to less, or raise --model_max_length if the "
                "model has more positions."
            )

    def load_model(self, device_map: Any = None) -> None:
        """Load the weights, once, and freeze them, like LLaVA's own towers.

        Args:
            device_map: None for the CPU, "auto" for an accelerator if available, a device, or {"": device}.

        Raises:
            UserError: the weights are missing, cannot be downloaded, or do not match the configuration.
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
        """Raise a UserError if the encoder differs from the one that the checkpoint was trained with."""
        found, expected = config.to_dict(), self.encoder_config.to_dict()
        differences = [
            f"{part}.{name} was {value}, is {found[part][name]}"
            for part in ("stem", "focus", "cortex")
            for name, value in expected[part].items()
            if found[part][name] != value
        ]
        if differences:
            raise UserError(
                f"The checkpoint was trained with another encoder than the current {self.vision_tower_name} "
                f"({', '.join(differences)}). Restore the old encoder, or train again."
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # LLaVA's LoRA reload loads everything that was trained next to the adapters, including a tuned tower, before
        # load_model.
        if not self.is_loaded and any(key.startswith(f"{prefix}vision_tower.") for key in state_dict):
            self.load_model(device_map="auto")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, images: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        """Images float[B, 3, H, W] -> float[B, n, C]; a list of float[3, H, W] -> a list of float[1, n, C].

        The output has the dtype of the images. Gradients are computed if parameters of the tower require them.
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
        (tokens,) = select_hidden_states(
            encoder, images, [self.select_layer], self.tower_name.aspect, tokens=self._requested_tokens
        )
        latent, prefix = tokens[:, encoder.num_prefix_tokens :], encoder.num_prefix_tokens - encoder.num_register_tokens
        return latent if self.select_feature == "patch" else torch.cat([tokens[:, :prefix], latent], dim=1)

    @property
    def dummy_feature(self) -> Tensor:
        """Zeros, float[1, C]."""
        return torch.zeros(1, self.hidden_size, device=self.device, dtype=self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights, except those that compute coordinates, which are float32."""
        return self.vision_tower.stem.conv.weight.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.vision_tower.stem.conv.weight.device

    @property
    def config(self) -> TowerConfig:
        """Configuration of the tower, available before the weights are loaded."""
        return TowerConfig(self.image_processor.crop_size["height"], self.hidden_size)

    @property
    def hidden_size(self) -> int:
        """Channels C of a visual token."""
        return self.encoder_config.cortex.width

    @property
    def num_patches(self) -> int:
        """Number of latent tokens n, for any image size."""
        return self.tower_name.tokens or self.encoder_config.focus.tokens

    @property
    def _requested_tokens(self) -> int | None:
        """Requested number of latent tokens; None for the encoder's own, which start in its own RoIs."""
        tokens = self.tower_name.tokens
        return None if tokens == self.encoder_config.focus.tokens else tokens

    @property
    def num_patches_per_side(self) -> int:
        """Raise a UserError: latent tokens have no grid."""
        raise UserError(
            f"num_patches_per_side does not exist: {self._no_grid()} Turn off what pools or arranges them by rows and "
            "columns; tokens= sets their number."
        )

    def _no_grid(self) -> str:
        return f"the {self.num_patches} tokens of {self.vision_tower_name} have no grid and cannot be merged spatially."
