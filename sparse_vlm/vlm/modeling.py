"""transformers' Llava with a SparseFormer as its vision model: projector, models, registration."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
)
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel
from transformers.models.llava.modeling_llava import (
    LlavaForConditionalGeneration,
    LlavaModel,
    LlavaModelOutputWithPast,
)
from transformers.utils import output_capturing

from sparse_vlm.encoder.batches import View as EncoderView
from sparse_vlm.encoder.rois import lay_out_rois
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.configuration import SparseVLMConfig
from sparse_vlm.vlm.dense.vit import DenseViTModel
from sparse_vlm.vlm.hub import auto_map, model_card, write_card, write_code
from sparse_vlm.vlm.language.positions import most_positions
from sparse_vlm.vlm.language.quantization import UnquantizedVision
from sparse_vlm.vlm.views import View, check_count, unpack_views
from sparse_vlm.vlm.vision import SparseFormerVisionModel, check_free_rois, visual_tokens

VISION_MODELS: dict[str, Any] = {"sparseformer": SparseFormerVisionModel, "dense_vit": DenseViTModel}
# older versions of transformers' own vision models return all hidden states or none
CLIP_SELECTS = hasattr(output_capturing, "selected_hidden_states")


def build_vision_model(config: Any) -> PreTrainedModel:
    """Create the vision model of a configuration.

    Our own are found by the name of their type: in the worker processes of servers (vLLM), the classes of a directory's
    code are not registered with AutoModel, and configurations are instances of copies of their classes.
    """
    model = VISION_MODELS.get(config.model_type)
    return AutoModel.from_config(config) if model is None else model._from_config(config)


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
        self.vision_tower = build_vision_model(config.vision_config)
        self.multi_modal_projector = build_projector(config)  # type: ignore[assignment]
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def encode_images(
        self,
        pixel_values: Tensor,
        views: Tensor | None = None,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
    ) -> list[Tensor]:
        """Compute the inputs of the projector: the chosen hidden states, without CLS if the strategy is "default".

        Args:
            pixel_values: float[I, 3, H, W].
            views: int64[I, R, 5] from `pack_views`; None: one of the default count per image.
            vision_feature_layer, vision_feature_select_strategy: those of the configuration if None.

        Returns:
            float[n, C] for each view, in the order of the placeholders.

        Raises:
            UserError: the vision tower cannot have other numbers of tokens, or a view has too many or too few.
        """
        asked = self.config.vision_feature_layer if vision_feature_layer is None else vision_feature_layer
        layers = [asked] if isinstance(asked, int) else list(asked)
        strategy = vision_feature_select_strategy or self.config.vision_feature_select_strategy
        dropped = int(strategy == "default")
        default = self.config.image_seq_length
        wanted = [View(place, default) for place in range(len(pixel_values))] if views is None else unpack_views(views)
        found: Sequence[tuple[Tensor, ...]]
        if all(map(self._is_default, wanted)):
            selects = CLIP_SELECTS or self.config.vision_config.model_type in VISION_MODELS  # type: ignore[union-attr]
            states = self.vision_tower(pixel_values, output_hidden_states=layers if selects else True).hidden_states
            found = [tuple(states[layer][view.image] for layer in layers) for view in wanted]
        else:
            initial = self.initial_rois(wanted, dropped)
            found = self.vision_tower.view_hidden_states(pixel_values, initial, layers)
        return [torch.cat([state[dropped:] for state in states], dim=-1) for states in found]

    def check_views(self, views: Sequence[View], dropped: int | None = None) -> None:
        """Check that this model can compute the tokens of views. Call this before long work.

        Args:
            views: see `encode_images`; their images do not matter.
            dropped: 1 if CLS is dropped, else 0; None: as in the configuration.

        Raises:
            UserError: the vision tower cannot have other numbers of tokens, or a view has too many or too few.
        """
        others = [view.tokens for view in views if not self._is_default(view)]
        if not others:
            return
        for tokens in others:
            check_count(tokens)
        check_free_rois(self.vision_tower)
        limit, kept = most_positions(self.config.get_text_config()), self._kept(dropped)
        if limit is not None and max(others) > limit:
            raise UserError(
                f"An image of {max(others)} visual tokens exceeds the {limit} positions of the language model: ask for "
                "fewer."
            )
        if min(others) <= kept:
            raise UserError(
                f"This model keeps CLS, so an image needs at least {kept + 1} visual tokens, got {min(others)}."
            )

    def _is_default(self, view: View) -> bool:
        """Return whether a view is a whole image with the default number of tokens."""
        return view == View(view.image, self.config.image_seq_length)

    def _kept(self, dropped: int | None) -> int:
        """Return the number of tokens of an image that are not latent tokens."""
        if dropped is None:
            dropped = int(self.config.vision_feature_select_strategy == "default")
        return visual_tokens(self.config.vision_config).prefix - dropped

    def initial_rois(self, views: Sequence[View], dropped: int | None = None) -> list[EncoderView]:
        """Convert views to initial RoIs; see `check_views`. Default views have the checkpoint's own RoIs."""
        self.check_views(views, dropped)
        kept = self._kept(dropped)
        return [
            EncoderView(view.image, None if self._is_default(view) else lay_out_rois(view.tokens - kept, view.box))
            for view in views
        ]

    def get_image_features(
        self,
        pixel_values: Tensor,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        views: Tensor | None = None,
        **options: Any,
    ) -> tuple | BaseModelOutputWithPooling:
        """Return the projected tokens as `pooler_output`, float[n, D] for each image, those of all its views.

        transformers' `generate` calls it once, with those of its arguments that this signature names. `options` are for
        Llava's own vision towers, and differ between versions of transformers.
        """
        tokens = self.encode_images(pixel_values, views, vision_feature_layer, vision_feature_select_strategy)
        counts = [len(view) for view in tokens] if views is None else views[..., 0].sum(1).tolist()
        return self._projected(torch.cat(tokens), counts)

    def _projected(self, tokens: Tensor, counts: Sequence[int]) -> BaseModelOutputWithPooling:
        """Project the tokens of images, float[T, C]; `counts` are their numbers per image."""
        projector: Any = self.multi_modal_projector
        projected = projector(tokens.to(projector.norm.weight.dtype))  # cached tokens may have another dtype
        split: Any = list(projected.split(list(counts)))
        return BaseModelOutputWithPooling(pooler_output=split)

    def forward(
        self,
        *args: Any,
        pixel_values: Tensor | None = None,
        views: Tensor | None = None,
        visual_tokens: Tensor | None = None,
        **inputs: Any,
    ) -> tuple | LlavaModelOutputWithPast:
        """Run LlavaModel, with its `args` and `inputs`.

        Args:
            pixel_values: float[I, 3, H, W].
            views: int64[I, R, 5], see `encode_images`.
            visual_tokens: float[T, C], the tokens of all placeholders from `encode_images`, instead of `pixel_values`.
        """
        if visual_tokens is not None:
            flat = visual_tokens.flatten(0, -2)
            inputs["mm_encoder_outputs"] = {"image": self._projected(flat, [len(flat)])}
        elif views is not None and pixel_values is not None:
            layer, strategy = inputs.get("vision_feature_layer"), inputs.get("vision_feature_select_strategy")
            features: Any = self.get_image_features(pixel_values, layer, strategy, views)
            inputs["mm_encoder_outputs"] = {"image": features}
        elif pixel_values is not None:
            inputs["pixel_values"] = pixel_values
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

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        """Accept `views` in `generate`: transformers reads the known names from the signature of Llava's forward."""
        generation: Any = super()  # transformers' annotation of self does not fit its own Llava
        generation._validate_model_kwargs({name: value for name, value in model_kwargs.items() if name != "views"})

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


AutoModel.register(SparseVLMConfig, SparseVLMModel)
AutoModelForImageTextToText.register(SparseVLMConfig, SparseVLMForConditionalGeneration)
AutoModelForMultimodalLM.register(SparseVLMConfig, SparseVLMForConditionalGeneration)
