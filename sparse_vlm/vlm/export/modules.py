"""The three parts of a VLM that become ONNX files: vision encoder, token embedding, decoder."""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from sparse_vlm.encoder.rois import lay_out_rois
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.language.prefixes import CACHE
from sparse_vlm.vlm.vision import SparseFormerVisionModel, without_registers

FULL, SLIDING = "full_attention", "sliding_attention"


class VisionEncoder(nn.Module):
    """Images -> the embeddings that the language model receives in place of `<image>`.

    Args:
        model: `SparseVLMForConditionalGeneration`.
        rois: initial RoIs float32[n, 4] of every image; None: those of the call, or the vision tower's own.
    """

    def __init__(self, model: Any, rois: Tensor | None = None) -> None:
        super().__init__()
        config = model.config
        self.tower, self.projector = model.model.vision_tower, model.model.multi_modal_projector
        layer = config.vision_feature_layer
        self.layers = [layer] if isinstance(layer, int) else list(layer)
        self.dropped = int(config.vision_feature_select_strategy == "default")
        self.rois = None if rois is None else nn.Buffer(rois, persistent=False)

    def forward(self, pixel_values: Tensor, initial_rois: Tensor | None = None) -> Tensor:
        """Encode images without a canvas.

        Args:
            pixel_values: float32[I, 3, H, W], preprocessed.
            initial_rois: float32[I, n, 4], (x1, y1, x2, y2) with [0, 1] from edge to edge of the image.

        Returns:
            float32[I, n, D], with CLS before the n tokens if the model keeps it.
        """
        states = self._states(pixel_values, self.rois if initial_rois is None else initial_rois)
        return self.projector(torch.cat([state[:, self.dropped :] for state in states], dim=-1))

    def _states(self, pixel_values: Tensor, rois: Tensor | None) -> Sequence[Tensor]:
        if not isinstance(self.tower, SparseFormerVisionModel):
            found = self.tower(pixel_values, output_hidden_states=self.layers).hidden_states
            return [found[layer] for layer in self.layers]
        encoder = self.tower.encoder
        states = encoder.hidden_states(pixel_values, self.layers, rois)
        return [without_registers(state, encoder.num_prefix_tokens, encoder.num_register_tokens) for state in states]


class TokenEmbedding(nn.Module):
    """Token ids int64[B, n] -> embeddings float32[B, n, D]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.embedding = model.get_input_embeddings()

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.embedding(input_ids)


class Int8Embedding(nn.Module):
    """`TokenEmbedding` with 8-bit integers and one scale per token."""

    def __init__(self, embedding: TokenEmbedding, vocabulary: int) -> None:
        super().__init__()
        table = embedding(torch.arange(vocabulary))
        scale = (table.abs().amax(-1, keepdim=True) / 127).clamp_min(torch.finfo(torch.float32).tiny)
        self.scale = nn.Buffer(scale)
        self.table = nn.Buffer((table / scale).round().to(torch.int8))

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.table[input_ids].float() * self.scale[input_ids]


class CacheShape(NamedTuple):
    """Shape of the keys and values of one layer: float32[B, heads, length, width]."""

    heads: int
    key_width: int
    value_width: int


class Decoder(nn.Module):
    """Embeddings of some tokens and the cache of those before -> logits of the next token, and the longer cache.

    One graph serves the prompt, with an empty cache, and each further token. The mask is an input of every layer, since
    what transformers computes from a padding mask has no ONNX form.

    Args:
        model: `SparseVLMForConditionalGeneration` with eager attention.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.language_model, self.lm_head = model.model.language_model, model.lm_head
        text = model.config.get_text_config()
        self.window: int | None = getattr(text, "sliding_window", None)
        default = [FULL if self.window is None else SLIDING]
        self.kinds = sorted(set(getattr(text, "layer_types", None) or default))

    def forward(
        self, inputs_embeds: Tensor, attention_mask: Tensor, position_ids: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        """Decode.

        Args:
            inputs_embeds: float32[B, n, D].
            attention_mask: int64[B, past + n], 0 for padding.
            position_ids: int64[B, n].
            past: keys and values of each layer in turn, float32[B, heads, past, width].

        Returns:
            Logits float32[B, 1, vocabulary] of the token after the last, then the keys and values of each layer.
        """
        cache = DynamicCache()
        layers = [_layer(keys, values) for keys, values in zip(past[::2], past[1::2], strict=True)]
        cache.layers = list(layers)
        masks = {kind: self._mask(attention_mask, inputs_embeds, kind) for kind in self.kinds}
        output = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=masks if len(masks) > 1 else masks[self.kinds[0]],
            position_ids=position_ids,
            use_cache=True,
            **{CACHE: cache},
        )
        present = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
        return self.lm_head(output.last_hidden_state[:, -1:]), *present

    def _mask(self, attention_mask: Tensor, inputs_embeds: Tensor, kind: str) -> Tensor:
        """Return what to add to the attention logits, float32[B, 1, n, past + n]."""
        total, count = attention_mask.shape[1], inputs_embeds.shape[1]
        keys = torch.arange(total)
        queries = torch.arange(count)[:, None] + (total - count)
        seen = keys <= queries
        if kind == SLIDING and self.window is not None:
            seen = seen & (keys > queries - self.window)
        seen = seen & (attention_mask != 0)[:, None, None, :]
        return torch.where(seen, 0.0, torch.finfo(torch.float32).min)


def _layer(keys: Tensor, values: Tensor) -> DynamicLayer:
    layer = DynamicLayer()
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values
    return layer


@torch.no_grad()
def cache_shapes(model: Any) -> list[CacheShape]:
    """Return the shape of each layer's keys and values.

    Raises:
        UserError: the language model remembers something other than keys and values of all tokens, or has no positions
            as an input.
    """
    text = model.config.get_text_config()
    language_model = model.model.language_model
    kinds = set(getattr(text, "layer_types", None) or [FULL])
    cache = DynamicCache()
    width = model.get_input_embeddings().weight.shape[1]
    if kinds <= {FULL, SLIDING} and "position_ids" in inspect.signature(language_model.forward).parameters:
        language_model(inputs_embeds=torch.zeros(1, 2, width), use_cache=True, **{CACHE: cache})
    if not cache.layers or any(type(layer) is not DynamicLayer or layer.keys is None for layer in cache.layers):
        raise UserError(
            f"A language model of type {text.model_type!r} cannot be exported: its layers must be attention over keys "
            "and values of earlier tokens, as in Llama, Qwen2, Qwen3 and Mistral."
        )
    layers: list[Any] = cache.layers
    return [CacheShape(layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3]) for layer in layers]


def rois_of(model: Any, visual_tokens: int) -> Tensor | None:
    """Return the initial RoIs float32[n, 4] of an image with this number of visual tokens.

    None if the vision tower has no such input: a dense ViT, or a SparseFormer v1.

    Args:
        model: `SparseVLMForConditionalGeneration`.
        visual_tokens: number of tokens that the language model receives.
    """
    tower = model.model.vision_tower
    if not isinstance(tower, SparseFormerVisionModel) or tower.encoder.config.focus.generation == "v1":
        return None
    own = tower.encoder.focus.initial_rois.weight.detach()
    other = visual_tokens - model.config.image_seq_length
    return own if other == 0 else lay_out_rois(len(own) + other)
