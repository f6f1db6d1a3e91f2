"""LLaVA's image processor for a SparseFormer: CLIP's interface, the encoder's own mean, std and interpolation."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import BatchFeature

from sparse_vlm.encoder.images import AnyImage
from sparse_vlm.encoder.preprocessing import Preprocessing, make_transform
from sparse_vlm.errors import UserError


class TowerImageProcessor:
    """PIL images -> float32[3, size, size] each, as LLaVA calls CLIP's processor.

    Args:
        preprocessing: the encoder's own; its resize is replaced by the crop, as in CLIP's processor, so that a square
            picture (`--image_aspect_ratio pad`) is seen whole.
        image_size: side in pixels.
        aspect: "crop": the middle square; "native": the whole picture, its longer side `image_size`, in the upper left
            of a canvas (`place_on_canvas`).
    """

    def __init__(self, preprocessing: Preprocessing, image_size: int, aspect: str) -> None:
        self.preprocessing = replace(preprocessing, resize=image_size, crop=image_size)
        self.image_mean, self.image_std = list(preprocessing.mean), list(preprocessing.std)
        self.size = {"shortest_edge": image_size}
        self.crop_size = {"height": image_size, "width": image_size}
        self._prepare = make_transform(self.preprocessing, aspect)

    def preprocess(self, images: AnyImage | Sequence[AnyImage], return_tensors: str = "pt") -> BatchFeature:
        """One picture or several -> {"pixel_values": float32[B, 3, size, size]}.

        Args:
            images: as `sparse_vlm.encoder.images.to_rgb` takes them.
            return_tensors: "pt".

        Raises:
            UserError: another return_tensors, or no image.
        """
        if return_tensors != "pt":
            raise UserError(f"The SparseFormer image processor returns torch tensors ('pt'), not {return_tensors!r}.")
        pictures = _as_list(images)
        if not pictures:
            raise UserError("The SparseFormer image processor got no image.")
        return BatchFeature({"pixel_values": torch.stack([self._prepare(picture) for picture in pictures])})

    __call__ = preprocess


def _as_list(images: Any) -> list[AnyImage]:
    several = isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4
    return list(images) if several else [images]
