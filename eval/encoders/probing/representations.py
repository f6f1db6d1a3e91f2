"""Frozen representations of labelled images: each encoder's pooled output and the means of its tokens."""

from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from eval.encoders.embeddings import encode_images
from eval.encoders.pair import ImageEncoder
from eval.encoders.probing.cache import cached, files_digest
from sparse_vlm.data.images.labelled_sets import LabelledSet, open_labelled_set
from sparse_vlm.encoder.preprocessing import Transform
from sparse_vlm.errors import UserError
from sparse_vlm.fingerprint import fingerprint

# "layer_-1": mean of the tokens after the last block; "layer_-2": after the block before, which an LLM reads.
REPRESENTATIONS = ("pooled", "layer_-1", "layer_-2")


class ImageSets(NamedTuple):
    """Training and test images of an evaluation.

    Attributes:
        train, test: see `open_labelled_set`.
        train_samples, test_samples: numbers of images to use, evenly spaced (None: all).
    """

    train: str
    test: str
    train_samples: int | None = None
    test_samples: int | None = None

    def open(self, encoder: ImageEncoder) -> tuple[LabelledSet, LabelledSet]:
        """Open both, preprocessed for an encoder."""
        transform = Transform(encoder.preprocessing)
        return (
            _open(self.train, transform, self.train_samples, "train"),
            _open(self.test, transform, self.test_samples, "test"),
        )


def _open(spec: str, transform: Transform, samples: int | None, kind: str) -> LabelledSet:
    """Open "train" or "test" images, which name the options in errors."""
    found = open_labelled_set(spec, transform, f"--{kind}_images")
    if samples is None:
        return found
    if samples > len(found.values):
        raise UserError(
            f"--{kind}_samples asks for {samples} images, but {spec} has {len(found.values)}. Leave it out to use all."
        )
    return found.spread(samples)


def represent(
    encoder: ImageEncoder,
    labelled: LabelledSet,
    cache: Path | None,
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    name: str = "represent images",
) -> dict[str, Tensor]:
    """Compute the representations of labelled images, all in one forward pass of each image.

    Args:
        encoder: on `device`.
        labelled: images, preprocessed for the encoder.
        cache: see `cached`; the weights, their settings and the list of images are the key.
        batch_size: images computed together.
        device, dtype: device and dtype of the weights.
        name: title of the progress bar.

    Returns:
        float32[N, D] on the CPU for each of `REPRESENTATIONS`.

    Raises:
        UserError: some are NaN or infinite.
    """

    def encode(pixels: Tensor) -> dict[str, Tensor]:
        output = encoder.encode(pixels)
        means = (output.last.float().mean(1), output.penultimate.float().mean(1))
        return dict(zip(REPRESENTATIONS, (output.pooled, *means), strict=True))

    about = {
        "format": 1,
        "weights": fingerprint(encoder.module),
        "settings": encoder.settings,
        "preprocessing": asdict(encoder.preprocessing),
        "images": files_digest(labelled.files),
    }
    found = cached(
        cache,
        about,
        REPRESENTATIONS,
        len(labelled.values),
        lambda: encode_images(encode, labelled.images, batch_size=batch_size, device=device, dtype=dtype, name=name),
    )
    for representation, values in found.items():
        if broken := int((~values.isfinite()).any(1).sum()):
            raise UserError(
                f"{name}: the representation {representation!r} is NaN or infinite for {broken} of {len(values)} "
                "images. The weights have diverged, or need --dtype float32."
            )
    return found
