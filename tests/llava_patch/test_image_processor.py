from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from llava_patch.image_processor import TowerImageProcessor
from sparse_vlm.encoder.preprocessing import CLIP_MEAN, CLIP_STD, Preprocessing, place_on_canvas
from sparse_vlm.errors import UserError

CLIP = Preprocessing(mean=CLIP_MEAN, std=CLIP_STD)


@pytest.fixture(scope="module")
def image() -> Image.Image:
    """Noise, 100 pixels wide and 60 high."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8))


def test_equals_llavas_clip_processor(image: Image.Image) -> None:
    # transformers 5 has two implementations; before, the only one used PIL
    processor = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    clip = processor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    ours = TowerImageProcessor(CLIP, 224, "crop")
    expected = clip.preprocess(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours.preprocess(image)["pixel_values"], expected, atol=2e-2, rtol=0)
    assert ours.crop_size == {"height": 224, "width": 224}
    assert ours.size == {"shortest_edge": 224}
    assert ours.image_mean == list(CLIP_MEAN)


def test_a_square_image_is_not_cropped() -> None:
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    pixels[0, 0] = 255
    out = TowerImageProcessor(CLIP, 64, "crop").preprocess(Image.fromarray(pixels))["pixel_values"][0]
    assert out[0].argmax() == 0


def test_accepts_one_or_several_images_of_any_kind(image: Image.Image) -> None:
    processor = TowerImageProcessor(CLIP, 32, "crop")
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    one = processor(image)["pixel_values"]
    for same in (array, tensor, [image], array[None]):
        assert torch.equal(processor(same).pixel_values, one)
    assert processor([image, array])["pixel_values"].shape == (2, 3, 32, 32)


def test_native_aspect_uses_a_canvas(image: Image.Image) -> None:
    canvas = TowerImageProcessor(CLIP, 64, "native").preprocess(image)["pixel_values"][0]
    expected = place_on_canvas(image, replace(CLIP, resize=64, crop=64))
    torch.testing.assert_close(canvas, expected, rtol=0, atol=0, equal_nan=True)


def test_bad_calls_are_user_errors(image: Image.Image) -> None:
    processor = TowerImageProcessor(CLIP, 32, "crop")
    with pytest.raises(UserError, match="'np'"):
        processor.preprocess(image, return_tensors="np")
    with pytest.raises(UserError, match="without an image"):
        processor.preprocess([])
