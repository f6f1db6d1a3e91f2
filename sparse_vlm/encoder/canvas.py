"""Pictures in their own aspect ratio as one tensor: each in the upper left of a square whose rest is NaN.

Batches stack pictures, so all need one shape; an encoder takes any, and must not see what is no picture.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torchvision.transforms import v2

from sparse_vlm.encoder.images import AnyImage, to_rgb
from sparse_vlm.encoder.model import EncoderOutput, SparseFormer
from sparse_vlm.encoder.preprocessing import INTERPOLATIONS, Preprocessing, Transform

ASPECTS = ("crop", "native")


def place_on_canvas(image: AnyImage, preprocessing: Preprocessing) -> Tensor:
    """A whole picture, resized so that its longer side is the crop's: float32[3, crop, crop], normalised, NaN outside.

    Args:
        image: as `to_rgb` takes it.
        preprocessing: whose crop, mean, std and interpolation are used.
    """
    rgb = to_rgb(image)
    side = preprocessing.crop
    scale = side / max(rgb.size)
    width, height = (max(1, round(length * scale)) for length in rgb.size)
    interpolation = INTERPOLATIONS[preprocessing.interpolation]
    resized = v2.functional.resize(rgb, [height, width], interpolation, antialias=True)
    pixels = v2.functional.to_dtype(v2.functional.pil_to_tensor(resized), torch.float32, scale=True)
    canvas = torch.full((3, side, side), torch.nan)
    canvas[:, :height, :width] = v2.functional.normalize(pixels, list(preprocessing.mean), list(preprocessing.std))
    return canvas


def preparation(preprocessing: Preprocessing, aspect: str) -> Callable[[AnyImage], Tensor]:
    """Image -> float32[3, crop, crop]: its middle square ("crop"), or all of it on a canvas ("native")."""
    return partial(place_on_canvas, preprocessing=preprocessing) if aspect == "native" else Transform(preprocessing)


def on_canvas(canvas: Tensor) -> Tensor:
    """float[3, S, S], NaN outside the picture -> the picture, float[3, H, W]; all of it where there is no NaN."""
    ((height, width),) = _sizes(canvas[None])
    return canvas[:, :height, :width]


def _sizes(canvases: Tensor) -> list[list[int]]:
    """[height, width] of each picture on canvases float[B, 3, S, S]; a GPU is asked once for all of them."""
    there = ~canvases[:, 0].isnan()
    return torch.stack([there[:, :, 0].sum(-1), there[:, 0].sum(-1)], dim=-1).tolist()


def encode_canvases(encoder: SparseFormer, canvases: Tensor) -> EncoderOutput:
    """What an encoder makes of the pictures on canvases; those of equal size go through it together.

    Args:
        encoder: any SparseFormer.
        canvases: float[B, 3, S, S] of `place_on_canvas`.

    Returns:
        As of a batch; the RoIs are in the coordinates of each picture, not of its canvas.
    """
    batches, place = _batches(canvases)
    outputs = [encoder(batch) for batch in batches]
    states = zip(*(output.hidden_states for output in outputs), strict=True)
    return EncoderOutput(
        torch.cat([output.tokens for output in outputs])[place],
        torch.cat([output.pooled for output in outputs])[place],
        torch.cat([output.rois for output in outputs], dim=1)[:, place],
        tuple(torch.cat(state)[place] for state in states),
    )


def hidden_states(encoder: SparseFormer, pictures: Tensor, layers: Sequence[int], aspect: str) -> tuple[Tensor, ...]:
    """`SparseFormer.hidden_states` of pictures float[B, 3, S, S] as `preparation` of the same aspect makes them."""
    if aspect != "native":
        return encoder.hidden_states(pictures, layers)
    batches, place = _batches(pictures)
    states = zip(*(encoder.hidden_states(batch, layers) for batch in batches), strict=True)
    return tuple(torch.cat(state)[place] for state in states)


def _batches(canvases: Tensor) -> tuple[list[Tensor], Tensor]:
    """The pictures in batches of equal size, and where in their concatenation each picture lies, int64[B]."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, size in enumerate(_sizes(canvases)):
        groups.setdefault(tuple(size), []).append(index)
    batches = [canvases[members, :, :height, :width] for (height, width), members in groups.items()]
    order = torch.tensor([index for members in groups.values() for index in members])
    return batches, order.argsort().to(canvases.device)
