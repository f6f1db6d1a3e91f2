"""Preprocessing: images of any mode and size become tensors."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from sparse_vlm.encoder import Preprocessing
from sparse_vlm.encoder.images import to_rgb
from sparse_vlm.encoder.preprocessing import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Transform,
    box_after_transform,
    box_before_transform,
    make_transform,
    place_on_canvas,
    remove_canvas,
)
from sparse_vlm.errors import UserError

CLIP = Preprocessing(64, 64, CLIP_MEAN, CLIP_STD)
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(1, 1), (4000, 3000), (1, 4000), (4000, 1), (224, 224), (30, 500)])
def test_any_size_becomes_the_crop(size: tuple[int, int]) -> None:
    tensor = Transform(Preprocessing())(Image.new("RGB", size, (255, 128, 0)))
    assert tensor.shape == (3, 224, 224)
    assert tensor.dtype == torch.float32
    expected = (torch.tensor([1, 128 / 255, 0]) - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(tensor.amax(dim=(1, 2)), expected)
    torch.testing.assert_close(tensor.amin(dim=(1, 2)), expected)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I", "F"])
def test_any_mode_is_taken(mode: str) -> None:
    tensor = Transform(Preprocessing())(IMAGE.convert(mode))
    assert tensor.shape == (3, 224, 224)
    assert tensor.std() > 0.3
    if mode in ("L", "LA", "1", "I", "F"):
        raw = tensor * torch.tensor(IMAGENET_STD)[:, None, None] + torch.tensor(IMAGENET_MEAN)[:, None, None]
        torch.testing.assert_close(raw[0], raw[2])


def test_16_bit_greyscale_keeps_its_shades() -> None:
    values = np.linspace(0, 65535, 300, dtype=np.uint16).reshape(10, 30)
    for array in (values, values.astype(">u2")):
        assert np.array_equal(np.asarray(to_rgb(Image.fromarray(array)))[..., 1], values // 256)
    wide = Image.fromarray(values.astype(np.int32))  # as PIL opens a PGM of 16 bits
    assert np.array_equal(np.asarray(to_rgb(wide))[..., 1], values // 256)


@pytest.mark.parametrize("numbers", [[[0.0, 0.5, 1.0]], [[0.0, 3e4]], [[-1.0, 200.0]], [[0, 70_000]]])
def test_greyscale_with_an_unknown_white_is_refused(numbers: list[list[float]]) -> None:
    kind = np.int32 if isinstance(numbers[0][0], int) else np.float32
    with pytest.raises(UserError, match=rf"to {max(numbers[0]):g}: convert it to 8 bits first"):
        to_rgb(Image.fromarray(np.array(numbers, dtype=kind)))


@pytest.mark.parametrize(("resize_mode", "size"), [("shortest", 64), ("squash", (64, 64))])
def test_the_transform_equals_torchvisions(resize_mode: str, size: int | tuple[int, int]) -> None:
    steps = v2.Compose(
        [
            v2.Resize(size, v2.InterpolationMode.BILINEAR, antialias=True),
            v2.CenterCrop(48),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )
    transform = Transform(Preprocessing(64, 48, CLIP_MEAN, CLIP_STD, "bilinear", resize_mode))
    assert torch.equal(transform(IMAGE), steps(IMAGE))
    assert torch.equal(pickle.loads(pickle.dumps(transform))(IMAGE), steps(IMAGE))


def test_squashing_keeps_the_ends_of_a_long_image() -> None:
    stripe = np.zeros((4, 400, 3), dtype=np.uint8)
    stripe[:, :100] = 255
    preprocessing = Preprocessing(64, 64, mean=(0, 0, 0), std=(1, 1, 1), resize_mode="squash")
    tensor = Transform(preprocessing)(Image.fromarray(stripe))
    assert tensor[:, :, :15].mean() > 0.99
    assert tensor[:, :, 18:].mean() < 0.01


def test_cutting_a_long_image_keeps_its_centre() -> None:
    stripe = np.zeros((4, 400, 3), dtype=np.uint8)
    stripe[:, 198:202] = 255
    tensor = Transform(Preprocessing(resize=64, crop=64, mean=(0, 0, 0), std=(1, 1, 1)))(Image.fromarray(stripe))
    torch.testing.assert_close(tensor, tensor.flip(-1))  # symmetric: the centre is still in the centre
    assert tensor[:, :, 16:48].mean() > 0.95


@pytest.mark.parametrize("size", [(100, 60), (60, 100), (50, 50), (1000, 1), (3, 700)])
def test_the_whole_image_lies_in_the_corner(size: tuple[int, int]) -> None:
    canvas = place_on_canvas(Image.new("RGB", size, "red"), CLIP)
    assert canvas.shape == (3, 64, 64)
    width, height = (max(1, round(64 * side / max(size))) for side in size)
    found = remove_canvas(canvas)
    assert found.shape == (3, height, width)
    assert not found.isnan().any()
    red = (torch.tensor([1.0, 0, 0]) - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    torch.testing.assert_close(found, red[:, None, None].expand_as(found))
    assert remove_canvas(canvas.half()).shape == found.shape


def test_a_square_image_equals_its_crop() -> None:
    image = Image.radial_gradient("L").convert("RGB")
    torch.testing.assert_close(remove_canvas(place_on_canvas(image, CLIP)), Transform(CLIP)(image))


def test_an_image_without_a_canvas_is_unchanged() -> None:
    pixels = torch.randn(3, 32, 32)
    assert torch.equal(remove_canvas(pixels), pixels)


@pytest.mark.parametrize("size", [(96, 96), (192, 96), (96, 240)])
@pytest.mark.parametrize(
    ("preprocessing", "aspect"),
    [
        (Preprocessing(64, 64), "crop"),
        (Preprocessing(80, 64), "crop"),
        (Preprocessing(80, 64, resize_mode="squash"), "crop"),
        (Preprocessing(80, 64), "native"),
    ],
)
def test_a_box_is_found_again_after_the_transform(
    size: tuple[int, int], preprocessing: Preprocessing, aspect: str
) -> None:
    box = (0.375, 0.40625, 0.625, 0.5)
    image = Image.new("L", size)
    corners = [round(side * length) for side, length in zip(box, size * 2, strict=True)]
    image.paste(255, tuple(corners))
    pixels = remove_canvas(make_transform(preprocessing, aspect)(image))[0]
    is_white = pixels > (pixels.min() + pixels.max()) / 2
    height, width = is_white.shape
    rows, columns = is_white.any(1).nonzero().flatten(), is_white.any(0).nonzero().flatten()
    seen = [columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height]
    expected = box_after_transform(box, size, preprocessing, aspect)
    assert seen == pytest.approx(expected, abs=1 / min(height, width))
    assert box_before_transform(expected, size, preprocessing, aspect) == pytest.approx(box)
