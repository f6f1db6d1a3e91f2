"""RoIs of a model's visual tokens, and the attention of its answer to them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, CLIPVisionModel

from demo.generation import Generation
from demo.models import OpenModel
from demo.session import SeenImage
from sparse_vlm.draw import undo_normalisation
from sparse_vlm.encoder.batches import View as EncoderView
from sparse_vlm.encoder.preprocessing import remove_canvas
from sparse_vlm.encoder.rois import lay_out_rois
from sparse_vlm.encoder.runtime.sampling_steps import SamplingStep, record_sampling_steps
from sparse_vlm.vlm.language.prefixes import CACHE
from sparse_vlm.vlm.views import View, unpack_views
from sparse_vlm.vlm.vision import SparseFormerVisionModel, visual_tokens

QUERIES = 16  # answer tokens per pass; memory holds their attention to all preceding tokens


def seen_images(opened: OpenModel, generation: Generation) -> list[SeenImage]:
    """Collect RoIs and attention for each image of the prompt; an empty list if the RoIs are unknown.

    Args:
        opened: the model.
        generation: finished, with at least one token, about at least one image.
    """
    images: Tensor = generation.inputs["pixel_values"]
    steps = sampling_steps(opened, generation.inputs)
    if not steps:
        return []
    views = prompt_views(opened, generation.inputs)
    shares = visual_attention(opened, generation).split([view.tokens for view in views], dim=1)
    found = []
    for image, pixels in enumerate(seen_pixels(opened, images)):
        own = [index for index, view in enumerate(views) if view.image == image]
        # the last columns of a view: CLS comes first and has no RoI
        attention = [shares[index][:, -steps[index][0].rois.shape[1] :] for index in own]
        joined = [_join(same) for same in zip(*(steps[index] for index in own), strict=True)]
        found.append(SeenImage(pixels, [views[index] for index in own], joined, torch.cat(attention, dim=1)))
    return found


def prompt_views(opened: OpenModel, inputs: BatchFeature) -> list[View]:
    """Return the view of each placeholder of a prompt with images, in order."""
    if "views" in inputs:
        return unpack_views(inputs["views"])
    images = len(inputs["pixel_values"])
    tokens = int((inputs["input_ids"] == opened.processor.image_token_id).sum())
    return [View(image, tokens // images) for image in range(images)]


def sampling_steps(opened: OpenModel, inputs: BatchFeature) -> list[list[SamplingStep]]:
    """Record the RoIs and sampling points of each step, for each view of a prompt.

    A dense CLIP ViT has one step, whose RoIs are the patches.

    Args:
        opened: the model.
        inputs: a prompt with images.

    Returns:
        The steps of each view, with a batch of 1; an empty list for other vision towers, whose tokens have unknown
        RoIs.
    """
    images: Tensor = inputs["pixel_values"]
    tower = getattr(opened.model.model, "vision_tower", None)
    if isinstance(tower, SparseFormerVisionModel):
        with opened.lock:  # one by one: their numbers of tokens differ, and on canvases their sizes
            return [
                record_sampling_steps(tower.encoder, remove_canvas(images[view.image])[None], view.rois)
                for view in _encoder_views(opened, inputs)
            ]
    if isinstance(tower, CLIPVisionModel):
        rois = lay_out_rois(visual_tokens(tower.config).latent)[None]
        return [[SamplingStep(rois, torch.empty(*rois.shape[:2], 0, 2))] for _ in images]
    return []


def _encoder_views(opened: OpenModel, inputs: BatchFeature) -> Sequence[EncoderView]:
    """Return the initial RoIs of each view of a prompt."""
    if "views" not in inputs:
        return [EncoderView(image) for image in range(len(inputs["pixel_values"]))]
    return opened.model.model.initial_rois(unpack_views(inputs["views"]))


def _join(steps: Sequence[SamplingStep]) -> SamplingStep:
    """Join the tokens of an image and of its regions in the same step."""
    return SamplingStep(*(torch.cat(parts, dim=1) for parts in zip(*steps, strict=True)))


def seen_pixels(opened: OpenModel, images: Tensor) -> list[Tensor]:
    """Undo the preprocessing: float[images, 3, S, S] -> float32[H, W, 3] in [0, 1] for each image."""
    mean, std = opened.processor.image_processor.image_mean, opened.processor.image_processor.image_std
    return [undo_normalisation(remove_canvas(image)[None], mean, std)[0] for image in images]


def visual_attention(opened: OpenModel, generation: Generation) -> Tensor:
    """Compute the attention of each token of an answer to each visual token, averaged over layers and heads.

    A second pass over prompt and answer uses an attention implementation that returns its weights: a row is the
    attention of the position that predicted the token. The sum of a row is the share of its attention that went to
    images. Source: ours.

    Args:
        opened: the model.
        generation: finished, with at least one token.

    Returns:
        float32[answer tokens, visual tokens], those of all views in the order of the prompt.
    """
    prompt: Tensor = generation.inputs["input_ids"]
    answer = torch.tensor([generation.ids], device=prompt.device)
    visual = (prompt[0] == opened.processor.image_token_id).nonzero().flatten()
    with opened.lock, torch.inference_mode():
        before = _without_last(generation.inputs)
        cache = opened.model(**before, use_cache=True, logits_to_keep=1)[CACHE]
        queries = torch.cat([prompt[:, -1:], answer[:, :-1]], dim=1)
        rows = []
        with _eager_attention(opened.model):
            for chunk in queries.split(QUERIES, dim=1):
                out = opened.model(input_ids=chunk, use_cache=True, output_attentions=True, **{CACHE: cache})
                layers = [attention[0, :, :, visual].float().mean(dim=0) for attention in out.attentions]
                rows.append(torch.stack(layers).mean(dim=0).cpu())
    return torch.cat(rows)


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
