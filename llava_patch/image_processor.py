"""Image processor for LLaVA, with the interface of CLIP's and the encoder's mean, std and interpolation."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import BatchFeature

from sparse_vlm.encoder.images import AnyImage
from sparse_vlm.encoder.preprocessing import Preprocessing, make_transform
from sparse_vlm.errors import UserError


class TowerImageProcessor:
    """Images -> float32[3, size, size] each, with the interface of CLIP's image processor.

    Args:
        preprocessing: the encoder's preprocessing. Images are resized to the size of the crop, as in CLIP's processor,
            so that nothing is cropped from a square image (`--image_aspect_ratio pad`).
        image_size: side of the result in pixels.
        aspect: "crop" for the central square; "native" for the whole image, with a longer side of `image_size`, in the
            upper left corner of a canvas (`place_on_canvas`).
    """

    def __init__(self, preprocessing: Preprocessing, image_size: int, aspect: str) -> None:
        self.preprocessing = replace(preprocessing, resize=image_size, crop=image_size)
        self.image_mean, self.image_std = list(preprocessing.mean), list(preprocessing.std)
        self.size = {"shortest_edge": image_size}
        self.crop_size = {"height": image_size, "width": image_size}
        self._prepare = make_transform(self.preprocessing, aspect)

    def preprocess(self, images: AnyImage | Sequence[AnyImage], return_tensors: str = "pt") -> BatchFeature:
        """Convert one image, or several, to {"pixel_values": float32[B, 3, size, size]}.

        Args:
            images: any images that `sparse_vlm.encoder.images.to_rgb` accepts.
            return_tensors: must be "pt".
        """
        if return_tensors != "pt":
            raise UserError(
                f"The SparseFormer image processor only returns torch tensors ('pt'), not {return_tensors!r}."
            )
        batch = _as_list(images)
        if not batch:
            raise UserError("The SparseFormer image processor was called without an image.")
        return BatchFeature({"pixel_values": torch.stack([self._prepare(image) for image in batch])})

    __call__ = preprocess


def _as_list(images: Any) -> list[AnyImage]:
    several = isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4
    return list(images) if several else [images]
