"""The images of a bootstrap: to train on, held out, for a picture at the end."""

from itertools import islice
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Subset

from sparse_vlm.data.images.sets import HeldOutImages, ImageSubset, IndexedImages
from sparse_vlm.data.images.sources import PREFIXES, STREAMS, open_images
from sparse_vlm.data.images.streams import HeldOutStream, ImageStream
from sparse_vlm.data.specs import parse_spec
from sparse_vlm.errors import UserError
from train.vision.bootstrap_arguments import ImageArguments
from train.vision.image_trainer import ImageSource

HeldOut = HeldOutStream | HeldOutImages


def training_images(images: ImageArguments, transform: Any, seed: int, shuffle_buffer: int) -> ImageSource:
    """The images of --data_path, with --hold_out those that are not measured with.

    Raises:
        UserError: they cannot be opened, or none can be held out.
    """
    found = open_images(
        images.data_path,
        transform,
        seed=seed,
        on_bad_image=images.on_bad_image,
        samples_per_epoch=images.samples_per_epoch,
        image_column=images.image_column,
        shuffle_buffer=shuffle_buffer,
    )
    if not images.hold_out:
        return found
    if isinstance(found, ImageStream):
        raise UserError(
            f"--hold_out True is for folders and tables, {images.data_path} is a stream: keep shards for "
            "--eval_data_path that are not in --data_path."
        )
    held_out = set(_held_out(images, found))
    if len(held_out) == len(found):
        raise UserError(f"--hold_out True leaves none of the {len(found)} images of {images.data_path} to train on.")
    return ImageSubset(found, [index for index in range(len(found)) if index not in held_out])


def held_out_images(images: ImageArguments, transform: Any) -> HeldOut | None:
    """The images of --eval_data_path, always the same in the same order.

    Raises:
        UserError: they cannot be opened, or are fewer than --eval_samples.
    """
    if images.eval_data_path is None:
        return None
    prefix, _ = parse_spec(images.eval_data_path, PREFIXES)
    found = open_images(
        images.eval_data_path,
        transform,
        on_bad_image=images.on_bad_image,
        samples_per_epoch=images.eval_samples if prefix in STREAMS else None,
        # the training images may lie in a table while these lie in a folder, which has no columns
        image_column=images.image_column if prefix is not None else None,
        shuffle_buffer=0,
    )
    if isinstance(found, ImageStream):
        return HeldOutStream(found)
    return HeldOutImages(found, _held_out(images, found))


def _held_out(images: ImageArguments, found: IndexedImages) -> list[int]:
    """Which ones of --eval_data_path: --eval_samples at equal distances."""
    if images.eval_samples is None:
        return list(range(len(found)))
    if images.eval_samples > len(found):
        raise UserError(
            f"--eval_samples asks for {images.eval_samples} images, but {images.eval_data_path} holds {len(found)}. "
            "Leave it out for all of them."
        )
    return _spread(found, images.eval_samples)


def _spread(images: IndexedImages, count: int) -> list[int]:
    """So many indices at equal distances: a folder is often sorted by class."""
    return [index * len(images) // count for index in range(count)]


def typical_images(images: ImageArguments, transform: Any) -> Tensor:
    """Training images, spread evenly, of a stream the first: float[statistics_images or all there are, 3, H, W]."""
    found = training_images(images, transform, seed=0, shuffle_buffer=0)
    count = images.statistics_images
    chosen = found if isinstance(found, ImageStream) else Subset(found, _spread(found, min(count, len(found))))
    return torch.stack([item["pixel_values"] for item in islice(iter(chosen), count)])


def some_pictures(images: ImageArguments, count: int = 4) -> list[Image.Image]:
    """The first held-out pictures that can be read, or the first of all."""

    def unchanged(image: Image.Image) -> Image.Image:
        return image

    source = held_out_images(images, unchanged) or training_images(images, unchanged, seed=0, shuffle_buffer=0)
    pictures = (item["pixel_values"] for item in iter(source) if item.get("readable", True))
    return list(islice(pictures, count))
