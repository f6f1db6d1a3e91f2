"""Where a model's visual tokens look, and which of them its answer attended to."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, CLIPVisionModel

from demo.models import OpenModel
from demo.speaking import Reply
from sparse_vlm.encoder.preprocessing import remove_canvas
from sparse_vlm.encoder.rois import lay_out_rois
from sparse_vlm.visualize import Glance, record_glances, undo_normalisation
from sparse_vlm.vlm.vision import SparseFormerVisionModel, visual_tokens

QUERIES = 16  # answer tokens in one pass: their attention to everything before them is kept in memory


def look(opened: OpenModel, pictures: Tensor) -> list[Glance]:
    """The RoIs and sampling points of each sampling step; of a dense CLIP ViT one step, whose RoIs are the patches.

    Args:
        opened: the model.
        pictures: float[pictures, 3, H, W], preprocessed.

    Returns:
        Nothing for another vision tower: where its tokens look is not known here.
    """
    tower = getattr(opened.model.model, "vision_tower", None)
    if isinstance(tower, SparseFormerVisionModel):
        with opened.lock:  # one by one: on canvases they have different sizes
            each = [record_glances(tower.encoder, remove_canvas(picture)[None]) for picture in pictures]
        return [Glance(*map(torch.cat, zip(*step, strict=True))) for step in zip(*each, strict=True)]
    if isinstance(tower, CLIPVisionModel):
        rois = lay_out_rois(visual_tokens(tower.config).latent).expand(len(pictures), -1, -1)
        return [Glance(rois, torch.empty(*rois.shape[:2], 0, 2))]
    return []


def seen_pixels(opened: OpenModel, pictures: Tensor) -> list[Tensor]:
    """Undoes the preprocessing: float[P, 3, S, S] -> float32[H, W, 3] in [0, 1] of each picture."""
    mean, std = opened.processor.image_processor.image_mean, opened.processor.image_processor.image_std
    return [undo_normalisation(remove_canvas(picture)[None], mean, std)[0] for picture in pictures]


def visual_attention(opened: OpenModel, reply: Reply, tokens: int) -> Tensor:
    """How much each word of an answer attended to each visual token, mean over the language model's layers and heads.

    A second pass over prompt and answer, with attention that keeps its weights: in a row, the position from which
    the word was predicted is the one that looks. A row's sum is the share of its attention that went to pictures.
    A CLS token among a picture's tokens is left out: it has no place. Source: ours.

    Args:
        opened: the model.
        reply: finished, with at least one token.
        tokens: n, latent tokens (or patches) of a picture.

    Returns:
        float32[words, pictures, n]
    """
    prompt: Tensor = reply.inputs["input_ids"]
    answer = torch.tensor([reply.ids], device=prompt.device)
    visual = (prompt[0] == opened.processor.image_token_id).nonzero().flatten()
    with opened.lock, torch.inference_mode():
        before = _without_last(reply.inputs)
        cache = opened.model(**before, use_cache=True, logits_to_keep=1).past_key_values
        queries = torch.cat([prompt[:, -1:], answer[:, :-1]], dim=1)
        rows = []
        with _weights_kept(opened.model):
            for chunk in queries.split(QUERIES, dim=1):
                out = opened.model(input_ids=chunk, past_key_values=cache, use_cache=True, output_attentions=True)
                layers = [attention[0, :, :, visual].float().mean(dim=0) for attention in out.attentions]
                rows.append(torch.stack(layers).mean(dim=0).cpu())
    pictures = len(reply.inputs["pixel_values"])
    return torch.cat(rows).unflatten(1, (pictures, -1))[..., -tokens:]


def _without_last(inputs: BatchFeature) -> dict[str, Any]:
    """The prompt without its last token, which is the first to look."""
    cut = ("input_ids", "attention_mask")
    return {name: value[:, :-1] if name in cut else value for name, value in inputs.items()}


@contextmanager
def _weights_kept(model: Any) -> Iterator[None]:
    """The language model computes its attention in the way that gives the weights ("eager")."""
    language = model.get_decoder()
    usual = language.config._attn_implementation
    language.set_attn_implementation("eager")
    try:
        yield
    finally:
        language.set_attn_implementation(usual)
