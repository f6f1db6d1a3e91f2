"""Pictures in their own aspect ratio: nothing is cut, nothing outside the picture is seen, batches equal one by one."""

import pytest
import torch
from PIL import Image
from torch import Tensor

from sparse_vlm.encoder import SparseFormer, SparseFormerConfig
from sparse_vlm.encoder.canvas import encode_canvases, hidden_states, on_canvas, place_on_canvas
from sparse_vlm.encoder.preprocessing import CLIP_MEAN, CLIP_STD, Preprocessing, Transform

CLIP = Preprocessing(64, 64, CLIP_MEAN, CLIP_STD)


@pytest.mark.parametrize("size", [(100, 60), (60, 100), (50, 50), (1000, 1), (3, 700)])
def test_the_whole_picture_lies_in_the_corner(size: tuple[int, int]) -> None:
    canvas = place_on_canvas(Image.new("RGB", size, "red"), CLIP)
    assert canvas.shape == (3, 64, 64)
    width, height = (max(1, round(64 * side / max(size))) for side in size)
    found = on_canvas(canvas)
    assert found.shape == (3, height, width)
    assert not found.isnan().any()
    red = (torch.tensor([1.0, 0, 0]) - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    torch.testing.assert_close(found, red[:, None, None].expand_as(found))
    assert on_canvas(canvas.half()).shape == found.shape


def test_a_square_picture_is_that_of_the_crop() -> None:
    picture = Image.radial_gradient("L").convert("RGB")
    torch.testing.assert_close(on_canvas(place_on_canvas(picture, CLIP)), Transform(CLIP)(picture))


def test_a_picture_without_a_canvas_stays() -> None:
    pixels = torch.randn(3, 32, 32)
    assert torch.equal(on_canvas(pixels), pixels)


def test_a_batch_of_canvases_equals_the_encoder_on_each_picture(tiny_config: SparseFormerConfig) -> None:
    torch.manual_seed(0)
    encoder = SparseFormer(tiny_config).eval()
    pictures = [torch.randn(3, *size) for size in ((40, 64), (64, 64), (64, 20), (40, 64), (1, 64))]
    with torch.no_grad():
        out = encode_canvases(encoder, torch.stack([_canvas(picture) for picture in pictures]))
        for index, picture in enumerate(pictures):
            alone = encoder(picture[None])
            torch.testing.assert_close(out.tokens[index], alone.tokens[0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(out.pooled[index], alone.pooled[0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(out.rois[:, index], alone.rois[:, 0], atol=1e-5, rtol=1e-5)
            for state, expected in zip(out.hidden_states, alone.hidden_states, strict=True):
                torch.testing.assert_close(state[index], expected[0], atol=1e-5, rtol=1e-5)
    assert out.rois.dtype == torch.float32
    with torch.no_grad():
        chosen = hidden_states(encoder, torch.stack([_canvas(picture) for picture in pictures]), [-2, 0], "native")
    assert torch.equal(chosen[0], out.hidden_states[-2])
    assert torch.equal(chosen[1], out.hidden_states[0])


def _canvas(picture: Tensor) -> Tensor:
    canvas = torch.full((3, 64, 64), torch.nan)
    canvas[:, : picture.shape[1], : picture.shape[2]] = picture
    return canvas
