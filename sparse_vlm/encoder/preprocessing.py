"""Image → the tensor that an encoder's weights expect. The preprocessing is saved with the weights.

A transform either crops the central square ("crop") or keeps the whole image in its own aspect ratio ("native").
A batch stacks tensors of one shape, so the latter puts each image in the upper left corner of a square *canvas* and
fills the rest with NaN; `encode_canvases` and `select_hidden_states` (batches.py) remove it before the encoder runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from sparse_vlm.encoder.images import AnyImage, to_rgb
from sparse_vlm.encoder.rois import check_box
from sparse_vlm.errors import UserError, unknown_choice

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INCEPTION_MEAN, INCEPTION_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

ASPECTS = ("crop", "native")
RESIZE_MODES = ("shortest", "squash")
INTERPOLATIONS = {"bilinear": v2.InterpolationMode.BILINEAR, "bicubic": v2.InterpolationMode.BICUBIC}


@dataclass(frozen=True)
class Preprocessing:
    """Resizing, centre crop, scaling to [0, 1] and normalisation.

    Attributes:
        resize: side after resizing, in pixels; see `resize_mode`.
        crop: side of the central square, in pixels.
        mean, std: per channel (RGB), for values in [0, 1].
        interpolation: "bicubic" or "bilinear", antialiased.
        resize_mode: "shortest" resizes the shorter side to `resize` and keeps the aspect ratio; "squash" resizes both
            sides to `resize`.
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
        object.__setattr__(self, "mean", tuple(self.mean))  # lists, if read from JSON
        object.__setattr__(self, "std", tuple(self.std))


# An image whose sides have a larger ratio is cropped before resizing: 1×4000 would become 256×1,024,000 pixels.
LONGEST_SIDE = 16


def _cut_long_side(image: Image.Image) -> Image.Image:
    longest = LONGEST_SIDE * min(image.size)
    if max(image.size) <= longest:
        return image
    left, top = (max(0, side - longest) // 2 for side in image.size)
    return image.crop((left, top, image.width - left, image.height - top))


class Transform:
    """Image -> float32[3, crop, crop], normalised.

    Accepts PIL images of any mode and size, arrays and tensors; see `sparse_vlm.encoder.images.to_rgb`. It can be
    pickled, so it works in data loader workers.
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

    def __call__(self, image: AnyImage) -> Tensor:
        rgb = to_rgb(image)
        return self._steps(_cut_long_side(rgb) if self.preprocessing.resize_mode == "shortest" else rgb)


def make_transform(preprocessing: Preprocessing, aspect: str) -> Callable[[AnyImage], Tensor]:
    """Return a function image -> float32[3, crop, crop].

    Args:
        preprocessing: that of the encoder's weights.
        aspect: "crop" for the central square, "native" for the whole image on a canvas.
    """
    return partial(place_on_canvas, preprocessing=preprocessing) if aspect == "native" else Transform(preprocessing)


def box_after_transform(
    box: Sequence[float], size: tuple[int, int], preprocessing: Preprocessing, aspect: str
) -> tuple[float, float, float, float]:
    """Convert a box in an image to the coordinates of what `make_transform` keeps of it.

    Args:
        box: (x1, y1, x2, y2), [0, 1] from edge to edge of the image.
        size: width and height of the image in pixels, upright.
        preprocessing, aspect: as in `make_transform`.

    Returns:
        The part of the box inside the central square, in its coordinates; the box itself if the whole image is kept.

    Raises:
        UserError: the box is empty, leaves the image, or lies outside the central square.
    """
    check_box(box)
    sides, kept, margins = _kept_part(size, preprocessing, aspect)
    inside = [
        min(1.0, max(0.0, (corner * sides[axis % 2] - margins[axis % 2]) / kept[axis % 2]))
        for axis, corner in enumerate(box)
    ]
    left, top, right, bottom = inside
    if not (left < right and top < bottom):
        raise UserError(
            f"The box {[round(side, 4) for side in box]} lies outside the central square of the image, and the model "
            "receives only that. Build the model with --aspect native, or choose another box."
        )
    return left, top, right, bottom


def box_before_transform(
    box: Sequence[float], size: tuple[int, int], preprocessing: Preprocessing, aspect: str
) -> tuple[float, float, float, float]:
    """Inverse of `box_after_transform`, for a box inside what `make_transform` keeps of the image."""
    check_box(box)
    sides, kept, margins = _kept_part(size, preprocessing, aspect)
    left, top, right, bottom = (
        min(1.0, max(0.0, (corner * kept[axis % 2] + margins[axis % 2]) / sides[axis % 2]))
        for axis, corner in enumerate(box)
    )
    return left, top, right, bottom


def _kept_part(
    size: tuple[int, int], preprocessing: Preprocessing, aspect: str
) -> tuple[list[float], list[float], list[float]]:
    """Width and height in pixels of an image, of the part that `make_transform` keeps, and of the margins before it."""
    sides = [float(side) for side in size]
    if aspect == "native":
        kept = sides
    elif preprocessing.resize_mode == "squash":
        kept = [side * preprocessing.crop / preprocessing.resize for side in sides]
    else:
        kept = [min(sides) * preprocessing.crop / preprocessing.resize] * 2
    return sides, kept, [(side - part) / 2 for side, part in zip(sides, kept, strict=True)]


def place_on_canvas(image: AnyImage, preprocessing: Preprocessing) -> Tensor:
    """Resize a whole image so that its longer side is `crop` pixels, and put it on a canvas.

    Args:
        image: any image that `to_rgb` accepts.
        preprocessing: gives crop, mean, std and interpolation; its resize and resize mode are ignored.

    Returns:
        float32[3, crop, crop], normalised, NaN outside the image.
    """
    rgb = to_rgb(image)
    side = preprocessing.crop
    scale = side / max(rgb.size)
    width, height = (max(1, round(length * scale)) for length in rgb.size)
    interpolation = INTERPOLATIONS[preprocessing.interpolation]
    resized = v2.functional.resize(rgb, [height, width], interpolation, antialias=True)
    pixels = v2.functional.to_dtype(v2.functional.pil_to_tensor(resized), torch.float32, scale=True)
    canvas = torch.full((3, side, side), torch.nan)
    canvas[:, :height, :width] = v2.functional.normalize(pixels, list(preprocessing.mean), list(preprocessing.std))
    return canvas


def remove_canvas(canvas: Tensor) -> Tensor:
    """float[3, S, S], NaN outside the image -> the image float[3, H, W]. Without any NaN, it is returned unchanged."""
    ((height, width),) = canvas_sizes(canvas[None])
    return canvas[:, :height, :width]


def canvas_sizes(canvases: Tensor) -> list[list[int]]:
    """[height, width] of each image on canvases float[B, 3, S, S]. Synchronises with a GPU once for the whole batch."""
    is_image = ~canvases[:, 0].isnan()
    return torch.stack([is_image[:, :, 0].sum(-1), is_image[:, 0].sum(-1)], dim=-1).tolist()
