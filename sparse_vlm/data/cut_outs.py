"""Shapes cut out of easy-VQA's images, to be pasted on other images."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from sparse_vlm.data.easy_vqa import VqaQuestion, attributes_from_questions, image_path
from sparse_vlm.image_files import open_image

CutOuts = dict[tuple[str, str], list[Image.Image]]  # (shape, colour) -> RGBA images


def cut_out_shapes(questions: Iterable[VqaQuestion], folder: Path) -> CutOuts:
    """Cut out the shapes of easy-VQA's images. Shapes that touch the border of their image are left out.

    Args:
        questions: the questions of a split, from which shapes and colours follow.
        folder: the images of this split.
    """
    found: CutOuts = {}
    for number, shown in attributes_from_questions(questions).items():
        image = open_image(image_path(folder, number)).convert("RGB")
        counted = sorted(image.getcolors(image.width * image.height) or [], reverse=True)
        colour = counted[1][1]  # the background has more pixels, the smoothed edges fewer
        mask = Image.fromarray(np.uint8(255) * (np.asarray(image) == colour).all(-1))
        left, top, right, bottom = box = mask.getbbox() or (0, 0, 0, 0)
        if left > 0 and top > 0 and right < image.width and bottom < image.height:
            image.putalpha(mask)
            found.setdefault((shown.shape, shown.colour), []).append(image.crop(box))
    return found


def resized_to(cut_out: Image.Image, length: int) -> Image.Image:
    """Resize a shape so that its longer side has `length` pixels."""
    scale = length / max(cut_out.size)
    width, height = (max(1, round(scale * pixels)) for pixels in cut_out.size)
    return cut_out.resize((width, height), Image.Resampling.BICUBIC)
