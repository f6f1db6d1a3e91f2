"""Images → pixel values: the encoder's preprocessing as an image processor of transformers."""

import base64
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from transformers import AutoImageProcessor, BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling, SizeDict

from sparse_vlm.encoder.images import AnyImage, to_rgb
from sparse_vlm.encoder.preprocessing import (
    ASPECTS,
    CLIP_MEAN,
    CLIP_STD,
    Preprocessing,
    box_after_transform,
    box_before_transform,
    make_transform,
)
from sparse_vlm.errors import UserError, one_line, unknown_choice
from sparse_vlm.image_files import decode_image
from sparse_vlm.vlm.views import Box
from sparse_vlm.vlm.vision import SparseFormerVisionConfig

RESCALE = 1 / 255
RESAMPLING = {"bilinear": PILImageResampling.BILINEAR, "bicubic": PILImageResampling.BICUBIC}


class SparseFormerImageProcessor(PilBackend):
    """Computes what `encoder.transform` computes, bit for bit. The names in its JSON file are those of CLIP's.

    Accepts what `sparse_vlm.encoder.images.to_rgb` accepts, files, http(s) addresses, data: URLs, and lists of these.

    Args:
        aspect: "crop": the central square; "native": the whole image on a canvas
            (`sparse_vlm.encoder.preprocessing`), for a vision model with the same aspect.
        **settings: settings of CLIP's image processor.
    """

    resample = PILImageResampling.BICUBIC
    image_mean = CLIP_MEAN
    image_std = CLIP_STD
    size = {"shortest_edge": 224}  # noqa: RUF012 (transformers' own convention)
    crop_size = {"height": 224, "width": 224}  # noqa: RUF012
    default_to_square = False
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    def __init__(self, aspect: str = "crop", **settings: Any) -> None:
        super().__init__(**settings)
        if aspect not in ASPECTS:
            raise unknown_choice("aspect", aspect, ASPECTS)
        self.aspect = aspect

    @classmethod
    def from_preprocessing(cls, preprocessing: Preprocessing, aspect: str = "crop") -> "SparseFormerImageProcessor":
        """Create the image processor for an encoder's preprocessing."""
        side = preprocessing.resize
        return cls(
            aspect,
            size={"height": side, "width": side} if preprocessing.resize_mode == "squash" else {"shortest_edge": side},
            crop_size={"height": preprocessing.crop, "width": preprocessing.crop},
            image_mean=list(preprocessing.mean),
            image_std=list(preprocessing.std),
            resample=RESAMPLING[preprocessing.interpolation],
        )

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Open files, http(s) addresses and data: URLs, and keep the nesting of lists.

        transformers' own method drops transparency.
        """
        if isinstance(image_url_or_urls, list | tuple):
            return [self.fetch_images(source) for source in image_url_or_urls]
        return _open(str(image_url_or_urls)) if isinstance(image_url_or_urls, str | Path) else image_url_or_urls

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> Any:
        return flat_images(self.fetch_images(images))

    def process_image(  # type: ignore[override]
        self, image: AnyImage, input_data_format: Any = None, **unused: object
    ) -> Image.Image:
        """Convert one image to RGB. `unused` are transformers' settings of later steps."""
        layout = None if input_data_format is None else str(getattr(input_data_format, "value", input_data_format))
        return to_rgb(image, layout=layout)

    def _preprocess(  # type: ignore[override]
        self,
        images: list[Image.Image],
        *,
        size: SizeDict,
        crop_size: SizeDict,
        image_mean: tuple[float, float, float],
        image_std: tuple[float, float, float],
        resample: int,
        do_resize: bool,
        do_center_crop: bool,
        do_rescale: bool,
        do_normalize: bool,
        rescale_factor: float = RESCALE,
        return_tensors: str | None = None,
        **unused: object,
    ) -> BatchFeature:
        if not (do_resize and do_center_crop and do_rescale and do_normalize):
            raise UserError(
                "An encoder's preprocessing always resizes, crops, rescales and normalizes: no do_* may be False."
            )
        if not math.isclose(rescale_factor, RESCALE):
            raise UserError(f"An encoder's preprocessing rescales by 1/255, not by {rescale_factor:g}.")
        prepare = make_transform(_preprocessing(size, crop_size, image_mean, image_std, resample), self.aspect)
        return BatchFeature({"pixel_values": [prepare(image) for image in images]}, tensor_type=return_tensors)

    def model_box(self, box: Sequence[float], image_size: tuple[int, int]) -> Box:
        """Convert a box in an image of `image_size` (width, height) to the coordinates of its pixel values.

        Raises:
            UserError: see `box_after_transform`.
        """
        return box_after_transform(box, image_size, self.preprocessing(), self.aspect)

    def image_box(self, box: Sequence[float], image_size: tuple[int, int]) -> Box:
        """Inverse of `model_box`: convert a box in the pixel values to the coordinates of the whole image."""
        return box_before_transform(box, image_size, self.preprocessing(), self.aspect)

    def preprocessing(self) -> Preprocessing:
        """Return the settings as the encoder's own."""
        size, crop_size = SizeDict(**dict(self.size)), SizeDict(**dict(self.crop_size))
        return _preprocessing(size, crop_size, self.image_mean, self.image_std, self.resample)


def _preprocessing(size: SizeDict, crop_size: SizeDict, mean: Any, std: Any, resample: int) -> Preprocessing:
    """Convert the settings of CLIP's image processor."""
    interpolations = {int(number): name for name, number in RESAMPLING.items()}
    return Preprocessing(
        size.shortest_edge or _side(size, "size"),
        _side(crop_size, "crop_size"),
        mean,
        std,
        interpolations.get(resample, str(resample)),
        "shortest" if size.shortest_edge else "squash",
    )


def _side(size: SizeDict, name: str) -> int:
    if size.height is None or size.height != size.width:
        given = {key: value for key, value in dict(size).items() if value is not None}
        raise UserError(f"{name} must be a square with equal height and width, not {given}.")
    return size.height


def flat_images(images: Any) -> list[AnyImage]:
    """Flatten nested lists of images and of [B, …] arrays, in order."""
    flat = _flatten(images)
    if not flat:
        raise UserError("The list of images is empty. Leave out images if the text has none.")
    return flat


def _flatten(images: Any) -> list[AnyImage]:
    if isinstance(images, list | tuple):
        return [image for part in images for image in _flatten(part)]
    if isinstance(images, Image.Image) or getattr(images, "ndim", 0) in (2, 3):
        return [images]
    if getattr(images, "ndim", 0) == 4:
        return list(images)
    raise UserError(f"An image must be a PIL image, an array or a tensor, not {type(images).__name__}.")


def _open(source: str) -> Image.Image:
    """Open the image in a file, at an http(s) address, in a data: URL or in base64."""
    shown = source if len(source) < 100 else f"{source[:97]}…"
    try:
        if source.startswith(("http://", "https://")):
            data = httpx.get(source, follow_redirects=True).raise_for_status().content
        elif os.path.isfile(source):
            data = Path(source).read_bytes()
        else:
            data = base64.b64decode(source.partition(",")[2] if source.startswith("data:") else source, validate=True)
    except ValueError:  # not base64, or not even ASCII
        raise UserError(f"There is no image {shown}: it is not a file, an http(s) address or a data: URL.") from None
    except (OSError, httpx.HTTPError, httpx.InvalidURL) as error:
        raise UserError(f"The image {shown} cannot be read ({one_line(error)}).") from error
    return decode_image(data, shown)


AutoImageProcessor.register(
    SparseFormerVisionConfig,
    image_processor_classes={"pil": SparseFormerImageProcessor, "torchvision": SparseFormerImageProcessor},
)
