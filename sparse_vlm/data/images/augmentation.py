"""The default augmentation of training images."""

import torch
from torchvision.transforms import v2

from sparse_vlm.encoder import Preprocessing
from sparse_vlm.encoder.preprocessing import INTERPOLATIONS
from sparse_vlm.errors import UserError


def augmentation(
    preprocessing: Preprocessing,
    min_area: float,
    *,
    rand_augment_ops: int = 0,
    rand_augment_magnitude: int = 9,
    random_erasing: float = 0.0,
) -> v2.Compose:
    """Return a random resized crop and flip, followed by the normalization of `preprocessing`.

    The transform maps an RGB PIL image to float32[3, crop, crop]. It draws from torch's generator only, so that
    `SeededImages` can repeat it.

    Args:
        preprocessing: crop size, interpolation, mean and standard deviation of the weights.
        min_area: smallest fraction of the image's area that a crop keeps, in (0, 1].
        rand_augment_ops: number of RandAugment operations (arXiv 1909.13719) per image; 0: none.
        rand_augment_magnitude: strength of these operations, 0 … 30.
        random_erasing: probability that a rectangle of the image is erased (arXiv 1708.04896).
    """
    if not 0 < min_area <= 1:
        raise UserError(f"The smallest fraction of an image that a crop keeps must be in (0, 1], got {min_area}.")
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
