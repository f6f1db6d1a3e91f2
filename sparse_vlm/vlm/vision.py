"""SparseFormer as a vision model of transformers: configuration, model, registration."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, CLIPVisionConfig, PreTrainedConfig
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from sparse_vlm.encoder import SparseFormer, SparseFormerConfig
from sparse_vlm.encoder.batches import View, encode_canvases, select_hidden_states, view_hidden_states
from sparse_vlm.encoder.float32 import Float32Module
from sparse_vlm.encoder.model import check_generation
from sparse_vlm.encoder.preprocessing import ASPECTS
from sparse_vlm.errors import UserError, unknown_choice


@strict
class SparseFormerVisionConfig(PreTrainedConfig):
    """The configuration of a SparseFormer as a vision model; `from_encoder` creates it.

    Attributes:
        encoder: `SparseFormerConfig.to_dict()`.
        hidden_size: width C of a token.
        num_tokens: number n of latent tokens.
        num_prefix_tokens: 1 with CLS, else 0.
        aspect: "crop": images are squares; "native": images keep their aspect ratio and come on canvases
            (`sparse_vlm.encoder.preprocessing`), which the image processor of the same aspect makes.
    """

    model_type = "sparseformer"
    base_config_key = "vision_config"
    has_no_defaults_at_init = True  # so that config.json has every field

    encoder: dict | None = None
    hidden_size: int = 0
    num_tokens: int = 0
    num_prefix_tokens: int = 0
    aspect: str = "crop"

    def __post_init__(self, **kwargs: object) -> None:
        super().__post_init__(**kwargs)
        if self.aspect not in ASPECTS:
            raise unknown_choice("aspect", self.aspect, ASPECTS)

    # The annotation is text, because vLLM sends a configuration to its workers with all that its class refers to.
    @classmethod
    def from_encoder(cls, encoder: "SparseFormer", aspect: str = "crop") -> "SparseFormerVisionConfig":
        """Create the configuration of `encoder`. Register tokens are not counted: the vision model drops them."""
        return cls(
            encoder=encoder.config.to_dict(),
            hidden_size=encoder.config.cortex.width,
            num_tokens=encoder.config.focus.tokens,
            num_prefix_tokens=encoder.num_prefix_tokens - encoder.num_register_tokens,
            aspect=aspect,
        )


class VisualTokens(NamedTuple):
    """The number of tokens of a vision tower per image: `prefix` tokens (CLS), followed by `latent` tokens."""

    latent: int
    prefix: int


def visual_tokens(vision: Any) -> VisualTokens:
    """Return the token counts of a vision configuration: a SparseFormer's, or CLIP's, whose tokens are patches."""
    if isinstance(vision, CLIPVisionConfig):
        image_size: Any = vision.image_size  # an integer here; other models of transformers allow more
        return VisualTokens((image_size // vision.patch_size) ** 2, 1)
    return VisualTokens(vision.num_tokens, vision.num_prefix_tokens)


@contextmanager
def _unpartitioned() -> Iterator[None]:
    """Build a module unpartitioned under ZeRO-3.

    transformers partitions each submodule as soon as it exists, but a SparseFormer initializes itself as a whole.
    DeepSpeed partitions it later, when the engine is created.
    """
    if not is_deepspeed_zero3_enabled():
        yield
        return
    from deepspeed.runtime.zero.partition_parameters import restore_init_context, shutdown_init_context

    shutdown_init_context()
    try:
        yield
    finally:
        restore_init_context()


def selected_hidden_states(output_hidden_states: bool | int | list[int] | None) -> list[int] | None:
    """Return the indices that transformers' argument `output_hidden_states` selects, or None if it is a flag."""
    if output_hidden_states is None or isinstance(output_hidden_states, bool):
        return None
    return [output_hidden_states] if isinstance(output_hidden_states, int) else list(output_hidden_states)


def without_registers(tokens: Tensor, prefix: int, registers: int) -> Tensor:
    """Remove the register tokens: float[B, prefix + n, C] -> float[B, prefix - registers + n, C].

    Args:
        tokens: CLS, registers, then n other tokens.
        prefix: number of CLS and register tokens.
        registers: number of register tokens.
    """
    if registers == 0:
        return tokens
    return torch.cat([tokens[:, : prefix - registers], tokens[:, prefix:]], dim=1)


class SparseFormerVisionModel(PreTrainedModel):
    """`SparseFormer` with transformers' interface. Returns all hidden states unless some are selected by number.

    Register tokens are dropped from the hidden states: they are not visual tokens, and Llava can drop only CLS.
    """

    config_class = SparseFormerVisionConfig
    main_input_name = "pixel_values"
    input_modalities = "image"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    supports_gradient_checkpointing = True

    def __init__(self, config: SparseFormerVisionConfig) -> None:
        super().__init__(config)
        with _unpartitioned():
            self.encoder = SparseFormer(SparseFormerConfig.from_dict(config.encoder or {}))
        # from_pretrained(dtype=…) casts tensors while reading them, before Float32Module could prevent it
        islands = [name for name, module in self.encoder.named_modules() if isinstance(module, Float32Module)]
        self._keep_in_fp32_modules_strict = {f"encoder.{name}" for name in islands}
        self.post_init()

    @classmethod
    def from_encoder(cls, encoder: "SparseFormer", aspect: str = "crop") -> "SparseFormerVisionModel":
        """Wrap `encoder` itself, without copying weights."""
        with torch.device("meta"):
            model = cls(SparseFormerVisionConfig.from_encoder(encoder, aspect))
        model.encoder = encoder
        return model

    @property
    def gradient_checkpointing(self) -> bool:
        """True if the backward pass recomputes the cortex's blocks. Set by transformers for a whole model."""
        return self.encoder.cortex.trunk.grad_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool) -> None:
        self.encoder.cortex.trunk.set_grad_checkpointing(enable)

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: a SparseFormer initializes itself, which transformers' normal(0.02) would overwrite."""

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | int | list[int] | None = None,
        use_cache: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """float[B, 3, H, W] -> tokens float[B, (CLS +) n, C], pooled float[B, D], hidden states (see EncoderOutput).

        Args:
            pixel_values: images, preprocessed; canvases where the aspect is "native".
            output_hidden_states: one or several indices: return these hidden states only, with None for the others and
                for `pooler_output`; later blocks are not computed. Otherwise all are returned.
            use_cache: ignored; transformers' Trainer sets it for the whole model, and Llava passes it on.
        """
        selected = selected_hidden_states(output_hidden_states)
        if selected is not None:
            found: list[Any] = [None] * (self.encoder.config.cortex.depth + 1)
            states = select_hidden_states(self.encoder, pixel_values, selected, self.config.aspect)
            for layer, state in zip(selected, states, strict=True):
                found[layer] = self._without_registers(state)
            return BaseModelOutputWithPooling(last_hidden_state=found[-1], hidden_states=tuple(found))
        native = self.config.aspect == "native"
        out = encode_canvases(self.encoder, pixel_values) if native else self.encoder(pixel_values)
        states = tuple(map(self._without_registers, out.hidden_states))
        return BaseModelOutputWithPooling(last_hidden_state=states[-1], pooler_output=out.pooled, hidden_states=states)

    def view_hidden_states(
        self, pixel_values: Tensor, views: Sequence[View], layers: Sequence[int]
    ) -> list[tuple[Tensor, ...]]:
        """The chosen hidden states of each view, float[(CLS +) n, C] each; see `batches.view_hidden_states`."""
        found = view_hidden_states(self.encoder, pixel_values, views, layers, self.config.aspect)
        return [tuple(self._without_registers(state[None])[0] for state in states) for states in found]

    def _without_registers(self, tokens: Tensor) -> Tensor:
        return without_registers(tokens, self.encoder.num_prefix_tokens, self.encoder.num_register_tokens)


def check_free_rois(tower: nn.Module) -> None:
    """Check that a vision tower takes any number of tokens and any initial RoIs.

    Raises:
        UserError: it is a dense ViT or a SparseFormer v1.
    """
    if not isinstance(tower, SparseFormerVisionModel):
        raise UserError(
            "Only a SparseFormer takes a number of visual tokens or regions, but this vision tower is a dense ViT."
        )
    check_generation(tower.encoder.config)


AutoConfig.register("sparseformer", SparseFormerVisionConfig)
AutoModel.register(SparseFormerVisionConfig, SparseFormerVisionModel)
