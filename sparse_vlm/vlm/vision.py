"""A SparseFormer as a vision model of transformers: configuration, model, registration."""

from collections.abc import Iterator
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
from transformers.utils.output_capturing import selected_hidden_states

from sparse_vlm.encoder import SparseFormer, SparseFormerConfig
from sparse_vlm.encoder.float32 import Float32Module
from sparse_vlm.encoder.model import encode_canvases, select_hidden_states
from sparse_vlm.encoder.preprocessing import ASPECTS
from sparse_vlm.errors import unknown_choice


@strict
class SparseFormerVisionConfig(PreTrainedConfig):
    """A SparseFormer as transformers sees it; `from_encoder` fills it.

    Attributes:
        encoder: `SparseFormerConfig.to_dict()`.
        hidden_size: channels C of a token.
        num_tokens: latent tokens n.
        num_prefix_tokens: 1 with CLS, else 0.
        aspect: "crop": pictures are squares; "native": they lie on canvases in their own aspect ratio
            (`sparse_vlm.encoder.preprocessing`), as the image processor of the same aspect puts them.

    Raises:
        UserError: another aspect.
    """

    model_type = "sparseformer"
    base_config_key = "vision_config"
    has_no_defaults_at_init = True  # so config.json holds every field

    encoder: dict | None = None
    hidden_size: int = 0
    num_tokens: int = 0
    num_prefix_tokens: int = 0
    aspect: str = "crop"

    def __post_init__(self, **kwargs: object) -> None:
        super().__post_init__(**kwargs)
        if self.aspect not in ASPECTS:
            raise unknown_choice("aspect", self.aspect, ASPECTS)

    @classmethod
    def from_encoder(cls, encoder: SparseFormer, aspect: str = "crop") -> "SparseFormerVisionConfig":
        """The configuration of `encoder`, as `SparseFormerVisionModel` shows it: without its register tokens."""
        return cls(
            encoder=encoder.config.to_dict(),
            hidden_size=encoder.config.cortex.width,
            num_tokens=encoder.config.focus.tokens,
            num_prefix_tokens=encoder.num_prefix_tokens - encoder.num_register_tokens,
            aspect=aspect,
        )


class VisualTokens(NamedTuple):
    """How many tokens a vision tower makes of a picture: `latent` ones behind `prefix` ones (CLS)."""

    latent: int
    prefix: int


def visual_tokens(vision: Any) -> VisualTokens:
    """Of a vision configuration: a SparseFormer's, or transformers' own CLIP, whose tokens are the patches."""
    if isinstance(vision, CLIPVisionConfig):
        image_size: Any = vision.image_size  # whole numbers here; other models of transformers allow more
        return VisualTokens((image_size // vision.patch_size) ** 2, 1)
    return VisualTokens(vision.num_tokens, vision.num_prefix_tokens)


@contextmanager
def _unpartitioned() -> Iterator[None]:
    """Under ZeRO-3 transformers builds models piecewise, each piece split at once; a SparseFormer has to initialise
    itself whole. DeepSpeed splits it afterwards, when the engine is made."""
    if not is_deepspeed_zero3_enabled():
        yield
        return
    from deepspeed.runtime.zero.partition_parameters import restore_init_context, shutdown_init_context

    shutdown_init_context()
    try:
        yield
    finally:
        restore_init_context()


class SparseFormerVisionModel(PreTrainedModel):
    """`SparseFormer` with transformers' interface. All hidden states are returned where none is selected by number.

    Register tokens are left out of them: they say nothing about the picture, and Llava knows only CLS to drop.
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
        # from_pretrained(dtype=…) casts tensors while it reads them, before Float32Module could object.
        islands = [name for name, module in self.encoder.named_modules() if isinstance(module, Float32Module)]
        self._keep_in_fp32_modules_strict = {f"encoder.{name}" for name in islands}
        self.post_init()

    @classmethod
    def from_encoder(cls, encoder: SparseFormer, aspect: str = "crop") -> "SparseFormerVisionModel":
        """The model around `encoder` itself; no weight is copied."""
        with torch.device("meta"):
            model = cls(SparseFormerVisionConfig.from_encoder(encoder, aspect))
        model.encoder = encoder
        return model

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether the backward pass computes the cortex' blocks again; transformers sets it for a whole model."""
        return self.encoder.cortex.trunk.grad_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool) -> None:
        self.encoder.cortex.trunk.set_grad_checkpointing(enable)

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: a SparseFormer initialises itself, and transformers' normal(0.02) would destroy that."""

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
            output_hidden_states: one number or several: those hidden states alone, None in the places of the others and
                of `pooler_output`; blocks behind the last of them are not computed. Else all are returned.
            use_cache: nothing here; transformers' Trainer sets it for a model, and Llava hands it down to its parts.
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

    def _without_registers(self, tokens: Tensor) -> Tensor:
        prefix, registers = self.encoder.num_prefix_tokens, self.encoder.num_register_tokens
        if registers == 0:
            return tokens
        return torch.cat([tokens[:, : prefix - registers], tokens[:, prefix:]], dim=1)


AutoConfig.register("sparseformer", SparseFormerVisionConfig)
AutoModel.register(SparseFormerVisionConfig, SparseFormerVisionModel)
