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
def picture() -> Image.Image:
    """100 wide, 60 high: noise."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8))


def test_equals_llavas_clip_processor(picture: Image.Image) -> None:
    # transformers 5 has two; before it the one there was took PIL's way
    processor = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    clip = processor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    ours = TowerImageProcessor(CLIP, 224, "crop")
    expected = clip.preprocess(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours.preprocess(picture)["pixel_values"], expected, atol=2e-2, rtol=0)
    assert ours.crop_size == {"height": 224, "width": 224}
    assert ours.size == {"shortest_edge": 224}
    assert ours.image_mean == list(CLIP_MEAN)


def test_a_square_picture_is_seen_whole() -> None:
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    pixels[0, 0] = 255
    out = TowerImageProcessor(CLIP, 64, "crop").preprocess(Image.fromarray(pixels))["pixel_values"][0]
    assert out[0].argmax() == 0


def test_takes_one_or_several_of_any_kind(picture: Image.Image) -> None:
    processor = TowerImageProcessor(CLIP, 32, "crop")
    array = np.asarray(picture)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    one = processor(picture)["pixel_values"]
    for same in (array, tensor, [picture], array[None]):
        assert torch.equal(processor(same).pixel_values, one)
    assert processor([picture, array])["pixel_values"].shape == (2, 3, 32, 32)


def test_native_aspect_is_the_canvas(picture: Image.Image) -> None:
    canvas = TowerImageProcessor(CLIP, 64, "native").preprocess(picture)["pixel_values"][0]
    expected = place_on_canvas(picture, replace(CLIP, resize=64, crop=64))
    torch.testing.assert_close(canvas, expected, rtol=0, atol=0, equal_nan=True)


def test_bad_calls_are_sentences(picture: Image.Image) -> None:
    processor = TowerImageProcessor(CLIP, 32, "crop")
    with pytest.raises(UserError, match="'np'"):
        processor.preprocess(picture, return_tensors="np")
    with pytest.raises(UserError, match="no image"):
        processor.preprocess([])
