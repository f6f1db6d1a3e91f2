"""From a picture to the tensor that an encoder's weights expect. It travels with the weights."""

from dataclasses import dataclass

import torch
from PIL import Image
from torchvision.transforms import v2

from sparse_vlm.encoder.images import AnyImage, to_rgb
from sparse_vlm.errors import UserError, unknown_choice

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INCEPTION_MEAN, INCEPTION_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

RESIZE_MODES = ("shortest", "squash")
INTERPOLATIONS = {"bilinear": v2.InterpolationMode.BILINEAR, "bicubic": v2.InterpolationMode.BICUBIC}


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop the centre, scale to [0,1], normalise.

    Attributes:
        resize: side after resizing, in pixels: see `resize_mode`.
        crop: side of the central square, in pixels.
        mean, std: per channel (RGB), of values in [0,1].
        interpolation: "bicubic" or "bilinear", antialiased.
        resize_mode: "shortest": `resize` is the short side, the aspect ratio stays; "squash": it is both sides.
    """

    resize: int = 256
    crop: int = 224
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise unknown_choice("interpolation", self.interpolation, INTERPOLATIONS)
        if self.resize_mode not in RESIZE_MODES:
            raise unknown_choice("resize mode", self.resize_mode, RESIZE_MODES)
        if not 0 < self.crop <= self.resize:
            raise UserError(f"preprocessing.crop must lie in 1…resize ({self.resize}), got {self.crop}.")
        if min(self.std) <= 0:
            raise UserError(f"preprocessing.std must be positive, got {self.std}.")
        object.__setattr__(self, "mean", tuple(self.mean))  # JSON brings lists
        object.__setattr__(self, "std", tuple(self.std))


# A side beyond this many times the other is cut before resizing: a 1×4000 image would become 256×1,024,000 pixels.
LONGEST_SIDE = 16


def _cut_long_side(image: Image.Image) -> Image.Image:
    longest = LONGEST_SIDE * min(image.size)
    if max(image.size) <= longest:
        return image
    left, top = (max(0, side - longest) // 2 for side in image.size)
    return image.crop((left, top, image.width - left, image.height - top))


class Transform:
    """Image -> float32[3, crop, crop], normalised.

    Takes PIL images of any mode and size, arrays and tensors; see `sparse_vlm.encoder.images.to_rgb`. Pickles, so it
    works in data workers.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing
        side = preprocessing.resize
        self._steps = v2.Compose(
            [
                v2.Resize(
                    (side, side) if preprocessing.resize_mode == "squash" else side,
                    INTERPOLATIONS[preprocessing.interpolation],
                    antialias=True,
                ),
                v2.CenterCrop(preprocessing.crop),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(preprocessing.mean, preprocessing.std),
            ]
        )

    def __call__(self, image: AnyImage) -> torch.Tensor:
        rgb = to_rgb(image)
        return self._steps(_cut_long_side(rgb) if self.preprocessing.resize_mode == "shortest" else rgb)
