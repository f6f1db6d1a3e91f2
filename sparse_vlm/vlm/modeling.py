"""transformers' Llava with a SparseFormer as its vision model: configurations, models, registration."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlavaConfig,
    PreTrainedConfig,
)
from transformers.activations import ACT2FN
from transformers.configuration_utils import SubConfigSpec
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel
from transformers.models.llava.modeling_llava import (
    LlavaForConditionalGeneration,
    LlavaModel,
    LlavaModelOutputWithPast,
)
from transformers.utils.generic import can_return_tuple

from sparse_vlm.encoder import SparseFormer, SparseFormerConfig
from sparse_vlm.encoder.float32 import Float32Module
from sparse_vlm.errors import UserError, unknown_choice
from sparse_vlm.files import write_text
from sparse_vlm.vlm.model_card import model_card
from sparse_vlm.vlm.portable import auto_map, write_code

PROJECTORS = ("linear", "mlp2x_gelu")


@strict
class SparseFormerVisionConfig(PreTrainedConfig):
    """A SparseFormer as transformers sees it; `from_encoder` fills it.

    Attributes:
        encoder: `SparseFormerConfig.to_dict()`.
        hidden_size: channels C of a token.
        num_tokens: latent tokens n.
        num_prefix_tokens: 1 with CLS, else 0.
    """

    model_type = "sparseformer"
    base_config_key = "vision_config"
    has_no_defaults_at_init = True  # so config.json holds every field

    encoder: dict | None = None
    hidden_size: int = 0
    num_tokens: int = 0
    num_prefix_tokens: int = 0

    @classmethod
    def from_encoder(cls, encoder: SparseFormer) -> "SparseFormerVisionConfig":
        """The configuration of `encoder`, as `SparseFormerVisionModel` shows it: without its register tokens."""
        return cls(
            encoder=encoder.config.to_dict(),
            hidden_size=encoder.config.cortex.width,
            num_tokens=encoder.config.focus.tokens,
            num_prefix_tokens=encoder.num_prefix_tokens - encoder.num_register_tokens,
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


@strict
class SparseVLMConfig(LlavaConfig):
    """LlavaConfig with a SparseFormer inside, or a dense CLIP ViT to compare it with. `image_seq_length` follows from
    the vision configuration and the select strategy.

    Attributes:
        projector_type: "mlp2x_gelu" (LayerNorm-Linear-GELU-Linear) or "linear" (LayerNorm-Linear).
        language_head_bias: whether the LLM's output layer has a bias (Phi's has).
        provenance: {"language_model": its name, "stages": [{"stage": its name, "data": [names]}]}; for the model card.

    Raises:
        UserError: unknown projector, or strategy "default" (drop CLS) with an encoder that has no CLS.
    """

    model_type = "sparse_vlm"
    has_no_defaults_at_init = True
    sub_configs_defaults = {  # noqa: RUF012 (transformers' own convention)
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="sparseformer"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
    }

    projector_type: str = "mlp2x_gelu"
    language_head_bias: bool = False
    provenance: dict | None = None

    def __post_init__(self, **kwargs: object) -> None:
        super().__post_init__(**kwargs)
        if self.projector_type not in PROJECTORS:
            raise unknown_choice("projector", self.projector_type, PROJECTORS)
        drops_first = self.vision_feature_select_strategy == "default"
        tokens = visual_tokens(self.vision_config)
        if drops_first and tokens.prefix == 0 and tokens.latent > 0:
            raise UserError(
                'vision_feature_select_strategy "default" drops the CLS token, but this encoder has none: use "full".'
            )
        self.image_seq_length = tokens.latent + (0 if drops_first else tokens.prefix)


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
    """`SparseFormer` with transformers' interface. All hidden states are returned always: they exist anyway.

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
    def from_encoder(cls, encoder: SparseFormer) -> "SparseFormerVisionModel":
        """The model around `encoder` itself; no weight is copied."""
        with torch.device("meta"):
            model = cls(SparseFormerVisionConfig.from_encoder(encoder))
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
            pixel_values: images, preprocessed.
            output_hidden_states: what transformers' Llava asks for; all are returned whatever it is.
            use_cache: nothing here; transformers' Trainer sets it for a model, and Llava hands it down to its parts.
        """
        out = self.encoder(pixel_values)
        states = tuple(map(self._without_registers, out.hidden_states))
        return BaseModelOutputWithPooling(last_hidden_state=states[-1], pooler_output=out.pooled, hidden_states=states)

    def _without_registers(self, tokens: Tensor) -> Tensor:
        prefix, registers = self.encoder.num_prefix_tokens, self.encoder.num_register_tokens
        if registers == 0:
            return tokens
        return torch.cat([tokens[:, : prefix - registers], tokens[:, prefix:]], dim=1)


def build_projector(config: SparseVLMConfig) -> nn.Sequential:
    """Vision tokens float[..., C] -> LLM embeddings. The LayerNorm is there because layer -2 is not normalised."""
    vision: Any = config.vision_config
    text: Any = config.text_config
    layers = 1 if isinstance(config.vision_feature_layer, int) else len(config.vision_feature_layer)
    width, out = vision.hidden_size * layers, text.hidden_size
    parts: OrderedDict[str, nn.Module] = OrderedDict(norm=nn.LayerNorm(width), linear_1=nn.Linear(width, out))
    if config.projector_type == "mlp2x_gelu":
        parts["act"] = ACT2FN[config.projector_hidden_act]
        parts["linear_2"] = nn.Linear(out, out)
    return nn.Sequential(parts)


class SparseVLMModel(LlavaModel):
    """LlavaModel with our projector, which also takes visual tokens that were computed before."""

    config_class = SparseVLMConfig

    def __init__(self, config: SparseVLMConfig) -> None:
        super(LlavaModel, self).__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = build_projector(config)  # type: ignore[assignment]
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """float[I, 3, H, W] -> float[I, n, C], what the projector takes: the hidden states that the configuration
        names, without CLS where it says so."""
        asked = self.config.vision_feature_layer
        states = self.vision_tower(pixel_values, output_hidden_states=True).hidden_states
        chosen = [states[layer] for layer in ([asked] if isinstance(asked, int) else asked)]
        drop = int(self.config.vision_feature_select_strategy == "default")
        return torch.cat([state[:, drop:] for state in chosen], dim=-1)

    def forward(
        self, *args: Any, visual_tokens: Tensor | None = None, **inputs: Any
    ) -> tuple | LlavaModelOutputWithPast:
        """As LlavaModel's, of which `args` and `inputs` are.

        Args:
            visual_tokens: float[I, n, C] of `encode_images`, in the place of `pixel_values`.
        """
        if visual_tokens is not None:
            projected: Any = list(self.multi_modal_projector(visual_tokens))  # transformers' own: an item per picture
            inputs["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=projected)}
        return super().forward(*args, **inputs)


class LanguageHead(nn.Linear):
    """Hidden states float[..., D] -> logits float[..., vocabulary], as the causal LM itself computes them: Llava's head
    is a bare matrix, but Phi's has a bias, and Gemma 2 bounds its logits (`final_logit_softcapping`)."""

    def __init__(self, config: SparseVLMConfig) -> None:
        text: Any = config.text_config
        super().__init__(text.hidden_size, text.vocab_size, bias=config.language_head_bias)
        self.softcap: float | None = getattr(text, "final_logit_softcapping", None)

    def forward(self, input: Tensor) -> Tensor:
        logits = super().forward(input)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


class SparseVLMForConditionalGeneration(LlavaForConditionalGeneration):
    """LlavaForConditionalGeneration around SparseVLMModel; loss, generate, save and load are inherited."""

    config_class = SparseVLMConfig

    def __init__(self, config: SparseVLMConfig) -> None:
        super(LlavaForConditionalGeneration, self).__init__(config)
        self.model = SparseVLMModel(config)
        self.lm_head = LanguageHead(config)
        self.post_init()

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | Path, is_main_process: bool = True, **options: Any
    ) -> None:
        """As transformers', `options` included, with a model card and the code for `trust_remote_code`."""
        if is_main_process:
            vision: Any = self.config.vision_config
            card = model_card(
                getattr(vision, "encoder", None) or {}, self.config.provenance or {}, self.config.image_seq_length
            )
            write_text(Path(save_directory) / "README.md", card)
            write_code(save_directory)
        self.config.auto_map = auto_map("model")
        super().save_pretrained(save_directory, is_main_process=is_main_process, **options)


AutoConfig.register("sparseformer", SparseFormerVisionConfig)
AutoModel.register(SparseFormerVisionConfig, SparseFormerVisionModel)
AutoConfig.register("sparse_vlm", SparseVLMConfig)
AutoModel.register(SparseVLMConfig, SparseVLMModel)
AutoModelForImageTextToText.register(SparseVLMConfig, SparseVLMForConditionalGeneration)
