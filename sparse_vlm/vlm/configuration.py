"""The configuration of a VLM: transformers' LlavaConfig with a SparseFormer, or with a dense ViT."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, LlavaConfig

from sparse_vlm.errors import UserError, unknown_choice
from sparse_vlm.vlm.dense.vit import DenseViTConfig  # noqa: F401 (the import registers it)
from sparse_vlm.vlm.vision import visual_tokens

try:
    from transformers.configuration_utils import SubConfigSpec
except ImportError:  # older versions leave out no values of the parts that equal a default, so they need no defaults
    DEFAULT_PARTS: dict[str, Any] = {}
else:
    DEFAULT_PARTS = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="sparseformer"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
    }
PROJECTORS = ("linear", "mlp2x_gelu")


@strict
class SparseVLMConfig(LlavaConfig):
    """LlavaConfig with a SparseFormer, or with a dense ViT to compare it with.

    `image_seq_length` is derived from the vision configuration and the select strategy.

    Attributes:
        projector_type: "mlp2x_gelu" (LayerNorm-Linear-GELU-Linear) or "linear" (LayerNorm-Linear).
        language_head_bias: whether the LLM's output layer has a bias, as Phi's has.
        trained_visual_tokens: numbers of visual tokens per image that the last stage trained with, in the notation of
            `TokenCounts`; None: `image_seq_length` alone.
        provenance: {"language_model": name, "language_model_licence": identifier or "", "stages": [{"stage": name,
            "data": [names]}]}, for the model card.
    """

    model_type = "sparse_vlm"
    has_no_defaults_at_init = True
    # frames of videos take the places of image tokens
    attribute_map = {**LlavaConfig.attribute_map, "video_token_id": "image_token_index"}  # noqa: RUF012
    sub_configs_defaults = DEFAULT_PARTS

    projector_type: str = "mlp2x_gelu"
    language_head_bias: bool = False
    trained_visual_tokens: str | None = None
    provenance: dict | None = None

    def __post_init__(self, **kwargs: object) -> None:
        if self.vision_config is None:  # where there are no DEFAULT_PARTS, Llava's own default would be a CLIP
            self.vision_config = {"model_type": "sparseformer"}
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


AutoConfig.register("sparse_vlm", SparseVLMConfig)
