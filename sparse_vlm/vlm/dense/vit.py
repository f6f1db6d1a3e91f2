"""A dense ViT of timm as a vision model of transformers: configuration, model, registration."""

from dataclasses import asdict, replace
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from timm.layers import PatchEmbed
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from sparse_vlm.encoder.config import CortexConfig
from sparse_vlm.encoder.cortex import build_trunk, run_blocks
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.vision import selected_hidden_states, without_registers


@strict
class DenseViTConfig(PreTrainedConfig):
    """The configuration of a dense ViT; `DenseViTModel.from_trunk` creates it.

    Attributes:
        trunk: the fields of the ViT's `CortexConfig`.
        image_size, patch_size: sides of its input and of a patch, in pixels.
        hidden_size: width C of a token.
        num_tokens: number n of patches.
        num_prefix_tokens: 1 with CLS, else 0.
    """

    model_type = "dense_vit"
    base_config_key = "vision_config"
    has_no_defaults_at_init = True  # so that config.json has every field

    trunk: dict | None = None
    image_size: int = 0
    patch_size: int = 0
    hidden_size: int = 0
    num_tokens: int = 0
    num_prefix_tokens: int = 0


class DenseViTModel(PreTrainedModel):
    """timm's VisionTransformer with transformers' interface: the visual tokens are all of its patch tokens.

    Register tokens are dropped from the hidden states, as in `SparseFormerVisionModel`.
    """

    config_class = DenseViTConfig
    main_input_name = "pixel_values"
    input_modalities = "image"
    _supports_sdpa = True
    supports_gradient_checkpointing = True

    def __init__(self, config: DenseViTConfig) -> None:
        super().__init__(config)
        cortex = CortexConfig(**(config.trunk or {}))
        options = {**cortex.options, "img_size": config.image_size, "patch_size": config.patch_size}
        self.trunk: Any = build_trunk(replace(cortex, options=options))  # timm's attributes have no types
        self.post_init()

    @classmethod
    def from_trunk(cls, trunk: Any, cortex: CortexConfig) -> "DenseViTModel":
        """Wrap a ViT itself, without copying weights.

        Args:
            trunk: timm's VisionTransformer, with a square input and square patches.
            cortex: its configuration, without the embedding of the patches.

        Raises:
            UserError: convolutions or other layers precede its blocks.
        """
        embedding = trunk.patch_embed
        if type(embedding) is not PatchEmbed:
            raise UserError(
                f"A dense tower embeds square patches by one convolution, but {cortex.architecture} begins with a "
                f"{type(embedding).__name__}."
            )
        config = DenseViTConfig(
            trunk=asdict(cortex),
            image_size=embedding.img_size[0],
            patch_size=embedding.patch_size[0],
            hidden_size=cortex.width,
            num_tokens=embedding.num_patches,
            num_prefix_tokens=trunk.num_prefix_tokens - int(trunk.num_reg_tokens),
        )
        with torch.device("meta"):
            model = cls(config)
        model.trunk = trunk
        return model

    @property
    def gradient_checkpointing(self) -> bool:
        """True if the backward pass recomputes the blocks. Set by transformers for a whole model."""
        return self.trunk.grad_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool) -> None:
        self.trunk.set_grad_checkpointing(enable)

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: timm initializes the ViT."""

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | int | list[int] | None = None,
        use_cache: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """float[B, 3, H, W] -> tokens float[B, (CLS +) n, C], pooled float[B, D], hidden states.

        Hidden state 0 enters the first block, hidden state i leaves block i. The arguments are those of
        `SparseFormerVisionModel.forward`.
        """
        trunk, selected = self.trunk, selected_hidden_states(output_hidden_states)
        depth = len(trunk.blocks)
        last = depth if selected is None else max(layer % (depth + 1) for layer in selected)
        pixel_values = pixel_values.to(trunk.patch_embed.proj.weight.dtype)  # SGLang leaves images float32
        entering = trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(pixel_values))))
        computed = run_blocks(trunk, entering, last)
        prefix, registers = trunk.num_prefix_tokens, int(trunk.num_reg_tokens)
        states = [without_registers(state, prefix, registers) for state in computed]
        if selected is None:
            pooled = trunk.forward_head(trunk.norm(computed[-1]))
            return BaseModelOutputWithPooling(states[-1], pooled, hidden_states=tuple(states))
        found: list[Any] = [None] * (depth + 1)
        for layer in selected:
            found[layer] = states[layer % (depth + 1)]
        return BaseModelOutputWithPooling(last_hidden_state=found[-1], hidden_states=tuple(found))


AutoConfig.register("dense_vit", DenseViTConfig)
AutoModel.register(DenseViTConfig, DenseViTModel)
