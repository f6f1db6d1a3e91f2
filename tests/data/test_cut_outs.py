"""Cut-outs of easy-VQA's shapes: one colour each, of the size that is requested."""

import pytest

pytest.importorskip("easy_vqa")

from sparse_vlm.data.cut_outs import CutOuts, cut_out_shapes, resized_to
from sparse_vlm.data.easy_vqa import load_questions, split_folder

RGB = {"black": (0, 0, 0), "blue": (0, 0, 255), "brown": (165, 42, 42), "gray": (128, 128, 128)}
RGB |= {"green": (0, 255, 0), "red": (255, 0, 0), "teal": (0, 128, 128), "yellow": (255, 255, 0)}


@pytest.fixture(scope="module")
def cut_outs() -> CutOuts:
    return cut_out_shapes(load_questions("test"), split_folder("test") / "images")


def test_each_class_has_cut_outs_of_its_colour(cut_outs: CutOuts) -> None:
    assert len(cut_outs) == 24
    for (_, colour), images in cut_outs.items():
        for image in images:
            (opaque,) = {pixel[:3] for _, pixel in image.getcolors(64 * 64) or [] if pixel[3]}
            assert opaque == RGB[colour]


def test_the_longer_side_gets_the_length(cut_outs: CutOuts) -> None:
    wide = cut_outs["rectangle", "red"][0].resize((40, 8))
    assert resized_to(wide, 20).size == (20, 4)
    assert resized_to(wide, 2).size == (2, 1), "no side vanishes"
