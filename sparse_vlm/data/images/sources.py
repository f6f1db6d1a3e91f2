"""Unlabelled images from folders, webdataset shards and Hugging Face data sets."""

from collections.abc import Callable
from typing import Any

from PIL import Image
from torch import Tensor

from sparse_vlm.data.images.hf_tables import open_stream, open_table
from sparse_vlm.data.images.sets import ImageFolder, ImageTable
from sparse_vlm.data.images.shards import TableShards, WebShards
from sparse_vlm.data.images.streams import ImageStream
from sparse_vlm.data.specs import parse_spec
from sparse_vlm.errors import UserError

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
    """Open unlabelled images. Items: {"pixel_values": float32[3, H, W]}.

    | spec                            | images                                                              |
    |---------------------------------|---------------------------------------------------------------------|
    | a path                          | every image file below a folder                                     |
    | wds:SHARDS                      | webdataset tar files: paths or URLs with {000..127}, joined by "::" |
    | wds-resampled:SHARDS            | the same; each reader draws shards with replacement                 |
    | hf:NAME[@CONFIG][:SPLIT]        | a data set of the Hugging Face hub, or a directory that             |
    |                                 | `save_to_disk` wrote or `datasets.load_dataset` opens (parquet, …)  |
    | hf-stream:NAME[@CONFIG][:SPLIT] | the same, read in sequence without a download                       |

    Pass the result to `sparse_vlm.data.images.loader.train_loader`, which splits it over processes and sets the epoch.

    Args:
        spec: see the table.
        transform: RGB image -> float32[3, H, W]; must draw from torch's generator only.
        seed: of the augmentation and the order.
        on_bad_image: "error" or "skip" (count and report); see `BadImages`.
        samples_per_epoch: images per epoch of a stream; None: all images of the shards, where their number is known.
        image_column: column (hf) or suffix (wds) of the images; None: the only one that holds images.
        shuffle_buffer: images among which a reader of a stream shuffles; 0: no shuffling at all.
    """
    prefix, name = parse_spec(spec, PREFIXES)
    if prefix not in STREAMS and samples_per_epoch is not None:
        raise UserError(
            f"--samples_per_epoch {samples_per_epoch} is for streams ({', '.join(STREAMS)}): an epoch of {spec} "
            "is all its images. Leave it out."
        )
    if prefix is None:
        if image_column is not None:
            raise UserError(f"--image_column {image_column} does not apply to the folder {spec}. Leave it out.")
        return ImageFolder(spec, transform, seed=seed, on_bad_image=on_bad_image)
    if prefix == "hf":
        rows, column = open_table(name, image_column)
        return ImageTable(rows, column, transform, seed=seed, on_bad_image=on_bad_image)
    shards, images = _open_shards(prefix, name, image_column, on_bad_image if samples_per_epoch is None else None)
    images = samples_per_epoch or images
    if images is None:
        raise UserError(
            f"The number of images of {spec} is not known: give --samples_per_epoch (held-out images: --eval_samples). "
            "Each epoch has a new random order, and a resumed run reads at most one epoch again."
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


def _open_shards(prefix: str, name: str, image_column: str | None, count_with: str | None) -> tuple[Any, int | None]:
    """Return shards and the number of their images, None if it is not known.

    Args:
        count_with: the policy for bad shards while images are counted; None: do not count.
    """
    if prefix == "hf-stream":
        rows, column, images = open_stream(name, image_column)
        return TableShards(rows, column), images
    shards = WebShards(name, image_column)
    return shards, None if count_with is None else shards.count(count_with)
