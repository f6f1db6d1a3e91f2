"""transformers' Llava with a SparseFormer as its vision model: configurations, models, registration."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    LlavaConfig,
)
from transformers.activations import ACT2FN
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import (
    LlavaForConditionalGeneration,
    LlavaModel,
    LlavaModelOutputWithPast,
)

from sparse_vlm.errors import UserError, unknown_choice
from sparse_vlm.vlm.hub import auto_map, model_card, write_card, write_code
from sparse_vlm.vlm.language.quantization import UnquantizedVision
from sparse_vlm.vlm.vision import visual_tokens

PROJECTORS = ("linear", "mlp2x_gelu")


@strict
class SparseVLMConfig(LlavaConfig):
    """LlavaConfig with a SparseFormer, or with a dense CLIP ViT to compare it with.

    `image_seq_length` is derived from the vision configuration and the select strategy.

    Attributes:
        projector_type: "mlp2x_gelu" (LayerNorm-Linear-GELU-Linear) or "linear" (LayerNorm-Linear).
        language_head_bias: whether the LLM's output layer has a bias, as Phi's has.
        provenance: {"language_model": name, "stages": [{"stage": name, "data": [names]}]}, for the model card.
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


def build_projector(config: SparseVLMConfig) -> nn.Sequential:
    """Create the projector: visual tokens float[..., C] -> LLM embeddings. Layer -2 is not normalized, so the projector
    begins with a LayerNorm."""
    vision: Any = config.vision_config
    text: Any = config.text_config
    layers = 1 if isinstance(config.vision_feature_layer, int) else len(config.vision_feature_layer)
    width, out = vision.hidden_size * layers, text.hidden_size
    parts: OrderedDict[str, nn.Module] = OrderedDict(norm=nn.LayerNorm(width), linear_1=nn.Linear(width, out))
    if config.projector_type == "mlp2x_gelu":
        parts["act"] = ACT2FN[config.projector_hidden_act]
        parts["linear_2"] = nn.Linear(out, out)
    return nn.Sequential(parts)


class SparseVLMModel(UnquantizedVision, LlavaModel):
    """LlavaModel with our projector. Also accepts visual tokens that were computed before."""

    config_class = SparseVLMConfig

    def __init__(self, config: SparseVLMConfig) -> None:
        super(LlavaModel, self).__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = build_projector(config)  # type: ignore[assignment]
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """float[I, 3, H, W] -> float[I, n, C], the input of the projector: the configured hidden states, without CLS
        if the select strategy drops it."""
        asked = self.config.vision_feature_layer
        layers = [asked] if isinstance(asked, int) else list(asked)
        states = self.vision_tower(pixel_values, output_hidden_states=layers).hidden_states
        drop = int(self.config.vision_feature_select_strategy == "default")
        return torch.cat([states[layer][:, drop:] for layer in layers], dim=-1)

    def forward(
        self, *args: Any, visual_tokens: Tensor | None = None, **inputs: Any
    ) -> tuple | LlavaModelOutputWithPast:
        """Run LlavaModel, with its `args` and `inputs`.

        Args:
            visual_tokens: float[I, n, C] from `encode_images`, instead of `pixel_values`.
        """
        if visual_tokens is not None:
            projector: Any = self.multi_modal_projector
            tokens = visual_tokens.to(projector.norm.weight.dtype)  # cached tokens may have another dtype
            projected: Any = list(projector(tokens))  # one item per image, as in transformers
            inputs["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=projected)}
        return super().forward(*args, **inputs)


class LanguageHead(nn.Linear):
    """Hidden states float[..., D] -> logits float[..., vocabulary], as the causal LM computes them.

    Llava's own head is a matrix only, but Phi's has a bias, and Gemma 2 caps its logits (`final_logit_softcapping`).
    """

    def __init__(self, config: SparseVLMConfig) -> None:
        text: Any = config.text_config
        super().__init__(text.hidden_size, text.vocab_size, bias=config.language_head_bias)
        self.softcap: float | None = getattr(text, "final_logit_softcapping", None)

    def forward(self, input: Tensor) -> Tensor:
        logits = super().forward(input)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


class SparseVLMForConditionalGeneration(UnquantizedVision, LlavaForConditionalGeneration):
    """LlavaForConditionalGeneration with SparseVLMModel. Loss, generation, saving and loading are inherited."""

    config_class = SparseVLMConfig

    def __init__(self, config: SparseVLMConfig) -> None:
        super(LlavaForConditionalGeneration, self).__init__(config)
        self.model = SparseVLMModel(config)
        self.lm_head = LanguageHead(config)
        self._tied_weights_keys = {"lm_head.weight": f"model.language_model.{self._embedding_name()}.weight"}
        self.post_init()

    def _embedding_name(self) -> str:
        """Return the name of the language model's input embeddings. Llava assumes `embed_tokens`; GPT-2's are `wte`."""
        language_model: Any = self.model.language_model
        embedding = language_model.get_input_embeddings()
        return next(name for name, module in language_model.named_modules() if module is embedding)

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | Path, is_main_process: bool = True, **options: Any
    ) -> None:
        """Save as transformers does, with its `options`, and add a model card and the code for `trust_remote_code`.

        An existing README.md that was edited or comes from elsewhere is kept.
        """
        if is_main_process:
            vision: Any = self.config.vision_config
            card = model_card(
                getattr(vision, "encoder", None) or {}, self.config.provenance or {}, self.config.image_seq_length
            )
            write_card(save_directory, card)
            write_code(save_directory)
        self.config.auto_map = auto_map("model")
        for part in (
            self.config.vision_config,
            self.config.text_config,
        ):  # transformers records the dtype of the whole model only
            part.dtype = self.dtype  # type: ignore[union-attr]
        super().save_pretrained(save_directory, is_main_process=is_main_process, **options)


AutoConfig.register("sparse_vlm", SparseVLMConfig)
AutoModel.register(SparseVLMConfig, SparseVLMModel)
AutoModelForImageTextToText.register(SparseVLMConfig, SparseVLMForConditionalGeneration)
AutoModelForMultimodalLM.register(SparseVLMConfig, SparseVLMForConditionalGeneration)
