"""RoIs of a model's visual tokens, and the attention of its answer to them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, CLIPVisionModel

from demo.generation import Generation
from demo.models import OpenModel
from sparse_vlm.draw import undo_normalisation
from sparse_vlm.encoder.preprocessing import remove_canvas
from sparse_vlm.encoder.rois import lay_out_rois
from sparse_vlm.encoder.runtime.sampling_steps import SamplingStep, record_sampling_steps
from sparse_vlm.vlm.vision import SparseFormerVisionModel, visual_tokens

QUERIES = 16  # answer tokens per pass; memory holds their attention to all preceding tokens


def sampling_steps(opened: OpenModel, images: Tensor) -> list[SamplingStep]:
    """Record the RoIs and sampling points of each step; a dense CLIP ViT has one step, whose RoIs are the patches.

    Args:
        opened: the model.
        images: float[images, 3, H, W], preprocessed.

    Returns:
        The steps; an empty list for other vision towers, whose tokens have unknown RoIs.
    """
    tower = getattr(opened.model.model, "vision_tower", None)
    if isinstance(tower, SparseFormerVisionModel):
        with opened.lock:  # one by one: on canvases they have different sizes
            each = [record_sampling_steps(tower.encoder, remove_canvas(image)[None]) for image in images]
        return [SamplingStep(*map(torch.cat, zip(*step, strict=True))) for step in zip(*each, strict=True)]
    if isinstance(tower, CLIPVisionModel):
        rois = lay_out_rois(visual_tokens(tower.config).latent).expand(len(images), -1, -1)
        return [SamplingStep(rois, torch.empty(*rois.shape[:2], 0, 2))]
    return []


def seen_pixels(opened: OpenModel, images: Tensor) -> list[Tensor]:
    """Undo the preprocessing: float[images, 3, S, S] -> float32[H, W, 3] in [0, 1] for each image."""
    mean, std = opened.processor.image_processor.image_mean, opened.processor.image_processor.image_std
    return [undo_normalisation(remove_canvas(image)[None], mean, std)[0] for image in images]


def visual_attention(opened: OpenModel, generation: Generation, tokens: int) -> Tensor:
    """Compute the attention of each token of an answer to each visual token, averaged over layers and heads.

    A second pass over prompt and answer uses an attention implementation that returns its weights: a row is the
    attention of the position that predicted the token. The sum of a row is the share of its attention that went to
    images. The CLS token of an image is left out, since it has no RoI. Source: ours.

    Args:
        opened: the model.
        generation: finished, with at least one token.
        tokens: n, the number of latent tokens (or patches) of an image.

    Returns:
        float32[answer tokens, images, n]
    """
    prompt: Tensor = generation.inputs["input_ids"]
    answer = torch.tensor([generation.ids], device=prompt.device)
    visual = (prompt[0] == opened.processor.image_token_id).nonzero().flatten()
    with opened.lock, torch.inference_mode():
        before = _without_last(generation.inputs)
        cache = opened.model(**before, use_cache=True, logits_to_keep=1).past_key_values
        queries = torch.cat([prompt[:, -1:], answer[:, :-1]], dim=1)
        rows = []
        with _eager_attention(opened.model):
            for chunk in queries.split(QUERIES, dim=1):
                out = opened.model(input_ids=chunk, past_key_values=cache, use_cache=True, output_attentions=True)
                layers = [attention[0, :, :, visual].float().mean(dim=0) for attention in out.attentions]
                rows.append(torch.stack(layers).mean(dim=0).cpu())
    images = len(generation.inputs["pixel_values"])
    return torch.cat(rows).unflatten(1, (images, -1))[..., -tokens:]


def _without_last(inputs: BatchFeature) -> dict[str, Any]:
    """Remove the last token of the prompt, whose attention is the first row."""
    cut = ("input_ids", "attention_mask")
    return {name: value[:, :-1] if name in cut else value for name, value in inputs.items()}


@contextmanager
def _eager_attention(model: Any) -> Iterator[None]:
    """Make the language model compute its attention with the implementation that returns the weights ("eager")."""
    language = model.get_decoder()
    usual = language.config._attn_implementation
    language.set_attn_implementation("eager")
    try:
        yield
    finally:
        language.set_attn_implementation(usual)
