"""The images of a bootstrap: for training, for evaluation, and for the figure at the end."""

from itertools import islice
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Subset

from sparse_vlm.data.images.sets import HeldOutImages, ImageSubset, IndexedImages, evenly_spaced
from sparse_vlm.data.images.sources import PREFIXES, STREAMS, open_images
from sparse_vlm.data.images.streams import HeldOutStream, ImageStream
from sparse_vlm.data.specs import parse_spec
from sparse_vlm.errors import UserError
from train.vision.bootstrap_arguments import ImageArguments
from train.vision.image_trainer import ImageSource

HeldOut = HeldOutStream | HeldOutImages


def training_images(images: ImageArguments, transform: Any, seed: int, shuffle_buffer: int) -> ImageSource:
    """Open the images of --data_path; with --hold_out, without the held-out ones.

    Raises:
        UserError: the images cannot be opened, or cannot be held out.
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
            f"--hold_out True is for folders and tables, but {images.data_path} is a stream: give --eval_data_path "
            "shards that are not in --data_path."
        )
    held_out = set(_held_out_indices(images, found))
    if len(held_out) == len(found):
        raise UserError(f"--hold_out True leaves none of the {len(found)} images of {images.data_path} to train on.")
    return ImageSubset(found, [index for index in range(len(found)) if index not in held_out])


def held_out_images(images: ImageArguments, transform: Any) -> HeldOut | None:
    """Open the images of --eval_data_path, always the same ones in the same order.

    Raises:
        UserError: the images cannot be opened, or are fewer than --eval_samples.
    """
    if images.eval_data_path is None:
        return None
    prefix, _ = parse_spec(images.eval_data_path, PREFIXES)
    found = open_images(
        images.eval_data_path,
        transform,
        on_bad_image=images.on_bad_image,
        samples_per_epoch=images.eval_samples if prefix in STREAMS else None,
        # The training images may come from a table and these from a folder, which has no columns.
        image_column=images.image_column if prefix in PREFIXES else None,
        shuffle_buffer=0,
    )
    if isinstance(found, ImageStream):
        return HeldOutStream(found)
    return HeldOutImages(found, _held_out_indices(images, found))


def _held_out_indices(images: ImageArguments, found: IndexedImages) -> list[int]:
    """Choose --eval_samples evenly spaced images of --eval_data_path."""
    if images.eval_samples is None:
        return list(range(len(found)))
    if images.eval_samples > len(found):
        raise UserError(
            f"--eval_samples asks for {images.eval_samples} images, but {images.eval_data_path} has {len(found)}. "
            "Leave it out to use all of them."
        )
    return evenly_spaced(found, images.eval_samples)


def typical_images(images: ImageArguments, transform: Any) -> Tensor:
    """Read up to `statistics_images` training images: float[N, 3, H, W].

    They are evenly spaced; of a stream they are the first.
    """
    found = training_images(images, transform, seed=0, shuffle_buffer=0)
    count = images.statistics_images
    chosen = found if isinstance(found, ImageStream) else Subset(found, evenly_spaced(found, min(count, len(found))))
    return torch.stack([item["pixel_values"] for item in islice(iter(chosen), count)])


def figure_images(images: ImageArguments, count: int = 4) -> list[Image.Image]:
    """Read the first readable held-out images, or training images if none are held out."""

    def unchanged(image: Image.Image) -> Image.Image:
        return image

    source = held_out_images(images, unchanged) or training_images(images, unchanged, seed=0, shuffle_buffer=0)
    readable = (item["pixel_values"] for item in iter(source) if item.get("readable", True))
    return list(islice(readable, count))
