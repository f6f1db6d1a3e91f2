"""Batches of images of different sizes, and several views of one image."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sparse_vlm.encoder.model import EncoderOutput, SparseFormer, starting_rois
from sparse_vlm.encoder.preprocessing import canvas_sizes


class View(NamedTuple):
    """Latent tokens that start in given RoIs of an image.

    Attributes:
        image: index of the image in its batch.
        rois: initial RoIs float32[n, 4], in the coordinates of the image; None for those of the checkpoint.
    """

    image: int
    rois: Tensor | None = None


def encode_canvases(
    encoder: SparseFormer, canvases: Tensor, rois: Tensor | None = None, tokens: int | None = None
) -> EncoderOutput:
    """Encode images of different sizes, each without its canvas; images of equal size are batched together.

    Args:
        encoder: any SparseFormer.
        canvases: float[B, 3, S, S] from `place_on_canvas`.
        rois, tokens: inputs of `SparseFormer.forward`; RoIs are in the coordinates of each image, not of its canvas.

    Returns:
        The output for the whole batch. RoIs are in the coordinates of each image, not of its canvas.
    """
    groups, place = _group_by_size(canvases)
    outputs = [encoder(batch, rois=_select(rois, members), tokens=tokens) for batch, members in groups]
    states = zip(*(output.hidden_states for output in outputs), strict=True)
    return EncoderOutput(
        torch.cat([output.tokens for output in outputs])[place],
        torch.cat([output.pooled for output in outputs])[place],
        torch.cat([output.rois for output in outputs], dim=1)[:, place],
        tuple(torch.cat(state)[place] for state in states),
    )


def select_hidden_states(
    encoder: SparseFormer,
    images: Tensor,
    layers: Sequence[int],
    aspect: str,
    rois: Tensor | None = None,
    tokens: int | None = None,
) -> tuple[Tensor, ...]:
    """`SparseFormer.hidden_states` for images float[B, 3, S, S] from `make_transform` with the same aspect."""
    if aspect != "native":
        return encoder.hidden_states(images, layers, rois=rois, tokens=tokens)
    groups, place = _group_by_size(images)
    found = [
        encoder.hidden_states(batch, layers, rois=_select(rois, members), tokens=tokens) for batch, members in groups
    ]
    return tuple(torch.cat(state)[place] for state in zip(*found, strict=True))


def _select(rois: Tensor | None, members: list[int]) -> Tensor | None:
    """RoIs of some images of the batch. RoIs of all images, float[n, 4], are returned as they are."""
    return rois if rois is None or rois.ndim == 2 else rois[members]


def _group_by_size(canvases: Tensor) -> tuple[list[tuple[Tensor, list[int]]], Tensor]:
    """Batches of equally large images with the images' indices, and int64[B]: the place of each image in their
    concatenation."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, size in enumerate(canvas_sizes(canvases)):
        groups.setdefault(tuple(size), []).append(index)
    batches = [(canvases[members, :, :height, :width], members) for (height, width), members in groups.items()]
    order = torch.tensor([index for members in groups.values() for index in members])
    return batches, order.argsort().to(canvases.device)


def view_hidden_states(
    encoder: SparseFormer, images: Tensor, views: Sequence[View], layers: Sequence[int], aspect: str
) -> list[tuple[Tensor, ...]]:
    """Hidden states of several views of each image. The stem runs once per image (ours).

    Args:
        encoder: any SparseFormer.
        images: float[B, 3, S, S] from `make_transform` with the same aspect.
        views: any number per image, with any number of tokens each.
        layers: indices of hidden states; negative ones count from the end.
        aspect: "crop" or "native".

    Returns:
        For each view the chosen hidden states, float[prefix + n, C] each.
    """
    batches = _group_by_size(images)[0] if aspect == "native" else [(images, list(range(len(images))))]
    found: dict[int, tuple[Tensor, ...]] = {}
    for batch, members in batches:
        here = [index for index, view in enumerate(views) if view.image in members]
        features = encoder.features(batch)
        for group in _group_by_count(views, here):
            places = [members.index(views[index].image) for index in group]
            chosen = features if places == list(range(len(members))) else features[places]
            given = [views[index].rois for index in group]
            rois = torch.stack([each for each in given if each is not None]) if given[0] is not None else None
            initial = starting_rois(encoder.config, chosen, rois, None)
            states = encoder.states_from_features(chosen, layers, initial)
            found |= {index: tuple(state[place] for state in states) for place, index in enumerate(group)}
    return [found[index] for index in range(len(views))]


def _group_by_count(views: Sequence[View], indices: Sequence[int]) -> list[list[int]]:
    """Indices of views with equally many RoIs, which one batch can hold; those of the checkpoint's own RoIs apart."""
    groups: dict[int | None, list[int]] = {}
    for index in indices:
        rois = views[index].rois
        groups.setdefault(None if rois is None else len(rois), []).append(index)
    return list(groups.values())
