"""Models that see whole images in their own aspect ratio."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from sparse_vlm.cli import main
from sparse_vlm.draw import roi_figure
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.answering import Answerer
from sparse_vlm.vlm.build import build_vlm
from sparse_vlm.vlm.chat import answer
from sparse_vlm.vlm.image_processor import SparseFormerImageProcessor
from sparse_vlm.vlm.loading import load_vlm
from sparse_vlm.vlm.vision import SparseFormerVisionConfig
from tests.vlm.conftest import Loaded


@pytest.fixture(scope="module")
def native_dir(encoder_dir: Path, llm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("native") / "model"
    assert main(["build", str(encoder_dir), str(llm_dir), str(out), "--aspect", "native"]) == 0
    return out


@pytest.fixture(scope="module")
def native(native_dir: Path) -> Loaded:
    return load_vlm(native_dir)


def test_visual_tokens_are_the_encoders_for_the_whole_image(native: Loaded, images: list[Image.Image]) -> None:
    model, processor = native
    encoder, image = model.model.vision_tower.encoder, images[2]  # 50 wide, 90 high
    side = encoder.config.preprocessing.crop
    resized = Image.new("RGB", (side, side))
    resized.paste(image.resize((round(50 * side / 90), side), Image.Resampling.BICUBIC))
    pixels = encoder.transform(resized)[None, :, :, : round(50 * side / 90)]
    with torch.no_grad():
        inputs = processor.image_processor(images=image, return_tensors="pt")
        (tokens,) = model.model.encode_images(inputs["pixel_values"])
        torch.testing.assert_close(tokens, encoder(pixels).hidden_states[-2][0, 1:], atol=1e-5, rtol=1e-5)


def test_batched_images_of_different_sizes_give_the_single_answers(native: Loaded, images: list[Image.Image]) -> None:
    questions = [(index, "What is it?") for index in range(len(images))]
    (batch,) = Answerer(*native, max_new_tokens=6).answer(images, questions)
    assert dict(batch) == {index: answer(*native, images[index], "What is it?", 6) for index in range(len(images))}


def test_the_directory_stores_its_aspect(native_dir: Path, native: Loaded, vlm: Loaded) -> None:
    model, processor = native
    assert model.config.vision_config.aspect == processor.image_processor.aspect == "native"
    assert vlm[0].config.vision_config.aspect == vlm[1].image_processor.aspect == "crop"
    assert (native_dir / "sparse_vlm_encoder_preprocessing.py").is_file()


def test_the_roi_figure_has_the_images_aspect(native_dir: Path, native: Loaded, tmp_path: Path) -> None:
    Image.new("RGB", (90, 30)).save(tmp_path / "wide.png")
    assert main(["rois", str(tmp_path / "wide.png"), "--model", str(native_dir), "-o", str(tmp_path / "out.png")]) == 0
    figure = roi_figure(native[0].model.vision_tower.encoder, [Image.new("RGB", (90, 30))], aspect="native")
    for axes in figure.axes:
        height, width = axes.get_images()[0].get_array().shape[:2]  # type: ignore[union-attr]
        assert axes.get_aspect() == height / width == pytest.approx(1 / 3, abs=0.02)


def test_an_unknown_aspect_is_refused() -> None:
    with pytest.raises(UserError, match="Did you mean 'native'"):
        SparseFormerVisionConfig(aspect="nativ")
    with pytest.raises(UserError, match="Did you mean 'crop'"):
        SparseFormerImageProcessor("crops")


def test_a_dense_tower_sees_squares_only(clip_dir: Path, llm_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sees squares only: aspect 'native' needs a SparseFormer"):
        build_vlm(clip_dir, llm_dir, tmp_path / "model", aspect="native")
    assert not (tmp_path / "model").exists()
