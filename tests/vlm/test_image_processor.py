"""The image processor computes what the encoder's own transform computes, and accepts images in every form."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from sparse_vlm.encoder import Preprocessing, SparseFormer
from sparse_vlm.encoder.images import to_rgb
from sparse_vlm.encoder.preprocessing import Transform
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.image_processor import SparseFormerImageProcessor
from tests.vlm.conftest import Loaded

QUESTION: list[dict[str, Any]] = [{"type": "image"}, {"type": "text", "text": "What?"}]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK"])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (64, 64), (341, 257), (90, 343)])
def test_pixel_values_equal_those_of_the_encoders_transform(
    vlm: Loaded, encoder_dir: Path, mode: str, size: tuple[int, int]
) -> None:
    noise = torch.randint(0, 256, (size[1], size[0], 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    image = Image.fromarray(noise.numpy()).convert(mode)
    got = vlm[1].image_processor(image, return_tensors="pt")["pixel_values"]
    expected = SparseFormer.from_pretrained(encoder_dir).transform(image)
    assert torch.equal(got, expected[None])


@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
def test_every_field_of_the_preprocessing_is_used(resize_mode: str) -> None:
    preprocessing = Preprocessing(40, 32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear", resize_mode)
    image = Image.effect_noise((50, 71), 80).convert("RGB")
    got = SparseFormerImageProcessor.from_preprocessing(preprocessing)(image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(got, Transform(preprocessing)(image))


def test_arrays_and_tensors_give_the_same_pixels(vlm: Loaded) -> None:
    array = torch.randint(0, 256, (30, 40, 3), dtype=torch.uint8)
    processor = vlm[1].image_processor
    values = [processor(x, return_tensors="pt")["pixel_values"] for x in (array.numpy(), array.permute(2, 0, 1))]
    expected = processor(Image.fromarray(array.numpy()), return_tensors="pt")["pixel_values"]
    assert torch.equal(values[0], expected)
    assert torch.equal(values[1], expected)


def test_the_image_processor_accepts_what_to_rgb_accepts(vlm: Loaded, tmp_path: Path) -> None:
    processor = vlm[1].image_processor
    colours = torch.randint(0, 256, (30, 40, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(colours.numpy()).save(tmp_path / "a.png", exif=exif)
    upright = to_rgb(Image.open(tmp_path / "a.png"))
    assert upright.size == (30, 40)
    expected = processor(upright, return_tensors="pt")["pixel_values"]
    data = f"data:image/png;base64,{base64.b64encode((tmp_path / 'a.png').read_bytes()).decode()}"
    for source in (Image.open(tmp_path / "a.png"), str(tmp_path / "a.png"), tmp_path / "a.png", data):
        assert torch.equal(processor(source, return_tensors="pt")["pixel_values"], expected)
        whole = vlm[1](text="<image>", images=source, return_tensors="pt")["pixel_values"]
        assert torch.equal(whole, expected)
    rgb = colours[..., :3].numpy()
    expected = processor(Image.fromarray(rgb), return_tensors="pt")["pixel_values"]
    for array in (rgb / 255, (rgb / 255).astype("float32").transpose(2, 0, 1), rgb.astype("int64"), rgb[None]):
        assert torch.equal(processor(array, return_tensors="pt")["pixel_values"], expected)
    grey = processor(Image.fromarray(rgb[..., 0]), return_tensors="pt")["pixel_values"]
    assert torch.equal(processor(rgb[..., 0], return_tensors="pt")["pixel_values"], grey)
    assert torch.equal(vlm[1](text="<image>", images=[rgb[..., 0]], return_tensors="pt")["pixel_values"], grey)
    narrow = rgb[:, :3]  # [30, 3, 3] in either layout
    first = processor(narrow.transpose(2, 0, 1), return_tensors="pt", input_data_format="channels_first")
    assert torch.equal(first["pixel_values"], processor(narrow, return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        ([], "The list of images is empty"),
        (torch.rand(3, 8, 8) * 255, "scale it to 0…1"),
        ("no/such.png", "There is no image no/such.png"),
        ([None], "not NoneType"),
    ],
)
def test_bad_images_are_one_line_errors(vlm: Loaded, images: Any, sentence: str) -> None:
    for call in (lambda: vlm[1].image_processor(images), lambda: vlm[1](text="<image>", images=images)):
        with pytest.raises(UserError, match=sentence):
            call()


def test_steps_cannot_be_switched_off(vlm: Loaded) -> None:
    with pytest.raises(UserError, match="no do_"):
        vlm[1].image_processor(Image.new("RGB", (4, 4)), do_resize=False)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"size": {"height": 32, "width": 40}}, "size must be a square .*'width': 40"),
        ({"size": {"longest_edge": 64}}, "size must be a square .*'longest_edge': 64"),
        ({"crop_size": {"height": 32, "width": 40}}, "crop_size must be a square"),
        ({"rescale_factor": 1.0}, "rescales by 1/255, not by 1"),
        ({"input_data_format": "first"}, "Unknown layout of an image 'first'. .*channels_first"),
    ],
)
def test_unsupported_settings_are_refused(vlm: Loaded, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        vlm[1].image_processor(np.zeros((9, 9, 3), dtype=np.uint8), **options)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("bild_ä.png", "There is no image bild_ä.png: it is not a file"),
        ("\ud800.png", "There is no image"),
        ("data:image/png;base64,AAAA", r"AAAA cannot be read \(unknown image format\)"),
    ],
)
def test_errors_name_a_source_that_is_not_an_image(vlm: Loaded, source: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        vlm[1].image_processor(source)
