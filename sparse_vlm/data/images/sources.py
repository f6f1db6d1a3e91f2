"""Unlabelled images for bootstrapping: `open_images` and the default augmentation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from sparse_vlm.data.images.sets import ImageFolder, ImageTable
from sparse_vlm.data.images.streams import ImageStream
from sparse_vlm.encoder import Preprocessing
from sparse_vlm.encoder.preprocessing import INTERPOLATIONS
from sparse_vlm.errors import UserError, unknown_choice

Transform = Callable[[Image.Image], Tensor]
STREAMS = ("hf-stream", "wds", "wds-resampled")
PREFIXES = ("hf", *STREAMS)


def open_images(
    spec: str,
    transform: Transform,
    *,
    seed: int = 0,
    on_bad_image: str = "error",
    samples_per_epoch: int | None = None,
    image_column: str | None = None,
    shuffle_buffer: int = 1000,
) -> ImageFolder | ImageTable | ImageStream:
    """Images without labels from anywhere. Items: {"pixel_values": float32[3, H, W]}.

    | spec                          | what                                                                    |
    |-------------------------------|-------------------------------------------------------------------------|
    | a path                        | every image file below a folder                                         |
    | wds:SHARDS                    | webdataset tar files: paths or URLs with {000..127}, joined by "::"     |
    | wds-resampled:SHARDS          | the same, each reader draws shards with replacement                     |
    | hf:NAME[@CONFIG][:SPLIT]      | a data set of the Hugging Face hub, or a directory: of `save_to_disk`, or |
    |                               | with files that `datasets.load_dataset` opens (parquet …)               |
    | hf-stream:NAME[@CONFIG][:SPLIT] | the same, read in sequence without a download                           |

    Use with `sparse_vlm.data.images.loader.train_loader`, which splits over processes and tells the epoch.

    Args:
        spec: see the table.
        transform: RGB image -> float32[3, H, W]; draws from torch's generator only.
        seed: of the augmentation and the order.
        on_bad_image: "error" or "skip" (counted and reported; see `BadImages`).
        samples_per_epoch: images of an epoch, for streams; None: what the shards hold, where that is known.
        image_column: column (hf) or ending (wds) of the images; None: the only one that holds images.
        shuffle_buffer: images that a reader of a stream shuffles among; 0: no shuffling at all.

    Raises:
        UserError: the spec or a setting is wrong, or there are no images.
    """
    prefix, _, name = spec.partition(":")
    if not name.strip() and (prefix in PREFIXES or not spec.strip()):
        raise UserError(f"--data_path {spec!r} names no images: give a folder, or a name behind the colon.")
    if prefix not in PREFIXES:
        if ":" in spec and not Path(spec).exists():
            raise UserError(
                f"{unknown_choice('prefix of --data_path', prefix, PREFIXES)} Without a prefix it is a folder, and "
                f"there is no folder {spec}."
            )
        _refuse_stream_settings(spec, samples_per_epoch)
        if image_column is not None:
            raise UserError(f"--image_column {image_column} says nothing about the folder {spec}. Leave it out.")
        return ImageFolder(spec, transform, seed=seed, on_bad_image=on_bad_image)
    if prefix == "hf":
        from sparse_vlm.data.images.hf_tables import open_table

        _refuse_stream_settings(spec, samples_per_epoch)
        rows, column = open_table(name, image_column)
        return ImageTable(rows, column, transform, seed=seed, on_bad_image=on_bad_image)
    shards, images = _open_shards(prefix, name, image_column, on_bad_image if samples_per_epoch is None else None)
    images = samples_per_epoch or images
    if images is None:
        raise UserError(
            f"{spec} does not say how many images it holds: give --samples_per_epoch (held-out images: --eval_samples)."
            " An epoch is how often the order is drawn anew, and the most that a resumed run reads again."
        )
    return ImageStream(
        shards,
        transform,
        images,
        seed=seed,
        on_bad_image=on_bad_image,
        resampled=prefix == "wds-resampled",
        shuffle_buffer=shuffle_buffer,
    )


def augmentation(
    preprocessing: Preprocessing,
    min_area: float,
    *,
    rand_augment_ops: int = 0,
    rand_augment_magnitude: int = 9,
    random_erasing: float = 0.0,
) -> v2.Compose:
    """Random resized crop and flip, then the weights' own normalisation: PIL image -> float32[3, crop, crop].

    Args:
        preprocessing: of the weights.
        min_area: smallest share of the picture's area that a crop keeps, in (0, 1].
        rand_augment_ops: random operations on colours and shape after that (arXiv 1909.13719); 0: none.
        rand_augment_magnitude: their strength, 0 … 30.
        random_erasing: share of the pictures in which a rectangle is erased (arXiv 1708.04896).

    Raises:
        UserError: `min_area` is no such share.
    """
    if not 0 < min_area <= 1:
        raise UserError(f"The smallest share of a picture that a crop keeps must be in (0, 1], got {min_area}.")
    size, interpolation = preprocessing.crop, INTERPOLATIONS[preprocessing.interpolation]
    steps: list[v2.Transform] = [
        v2.RandomResizedCrop(size, scale=(min_area, 1.0), interpolation=interpolation, antialias=True),
        v2.RandomHorizontalFlip(),
    ]
    if rand_augment_ops:
        grey = [round(255 * value) for value in preprocessing.mean]
        steps.append(v2.RandAugment(rand_augment_ops, rand_augment_magnitude, fill=grey))
    steps += [
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(preprocessing.mean, preprocessing.std),
    ]
    if random_erasing:
        steps.append(v2.RandomErasing(random_erasing))
    return v2.Compose(steps)


def _refuse_stream_settings(spec: str, samples_per_epoch: int | None) -> None:
    if samples_per_epoch is not None:
        raise UserError(
            f"--samples_per_epoch {samples_per_epoch} is for streams ({', '.join(STREAMS)}): an epoch of {spec} "
            "is all its images. Leave it out."
        )


def _open_shards(prefix: str, name: str, image_column: str | None, count_with: str | None) -> tuple[Any, int | None]:
    """Shards, and how many images they hold (None: unknown). Imports here, because both packages are slow to import.

    Args:
        count_with: the policy for bad shards while they are counted; None: they are not.
    """
    if prefix == "hf-stream":
        from sparse_vlm.data.images.hf_tables import open_stream
        from sparse_vlm.data.images.shards import TableShards

        rows, column, images = open_stream(name, image_column)
        return TableShards(rows, column), images
    from sparse_vlm.data.images.shards import WebShards

    shards = WebShards(name, image_column)
    return shards, None if count_with is None else shards.count(count_with)
