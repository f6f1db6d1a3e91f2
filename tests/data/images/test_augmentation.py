"""The default augmentation."""

import pytest
import torch
from PIL import Image
from torch import Tensor

from sparse_vlm.data.images.augmentation import augmentation
from sparse_vlm.encoder import Preprocessing
from sparse_vlm.errors import UserError


def test_augmentation_crops_flips_and_normalises() -> None:
    transform = augmentation(Preprocessing(resize=16, crop=16, mean=(0.5,) * 3, std=(0.5,) * 3), min_area=0.3)
    image = Image.linear_gradient("L").convert("RGB")
    views: list[Tensor] = [transform(image) for _ in range(4)]
    assert all(view.shape == (3, 16, 16) and view.dtype == torch.float32 for view in views)
    assert all(-1 <= view.min() < view.max() <= 1 for view in views)
    assert not torch.equal(views[0], views[1])


@pytest.mark.parametrize("min_area", [0.0, -0.1, 1.5, float("nan")])
def test_the_smallest_area_of_a_crop_is_a_fraction(min_area: float) -> None:
    with pytest.raises(UserError, match=rf"must be in \(0, 1\], got {min_area}"):
        augmentation(Preprocessing(resize=16, crop=16, mean=(0.5,) * 3, std=(0.5,) * 3), min_area)
