"""Shapes cut out of easy-VQA's images, to be pasted on other images."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from sparse_vlm.data.easy_vqa import (
    VqaQuestion,
    attributes_from_questions,
    hold_out_images,
    image_path,
    load_questions,
    split_folder,
)
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


def cut_outs_by_part(held_out: int) -> dict[str, CutOuts]:
    """Cut out the shapes of easy-VQA for "validation", "test" and "train".

    Args:
        held_out: number of images of the training split whose shapes are for validation alone.

    Raises:
        UserError: easy-VQA is not installed.
    """
    training, validation = hold_out_images(load_questions("train"), held_out)
    folders = {split: split_folder(split) / "images" for split in ("train", "test")}
    return {
        "validation": cut_out_shapes(validation, folders["train"]),
        "test": cut_out_shapes(load_questions("test"), folders["test"]),
        "train": cut_out_shapes(training, folders["train"]),
    }


def resized_to(cut_out: Image.Image, length: int) -> Image.Image:
    """Resize a shape so that its longer side has `length` pixels."""
    scale = length / max(cut_out.size)
    width, height = (max(1, round(scale * pixels)) for pixels in cut_out.size)
    return cut_out.resize((width, height), Image.Resampling.BICUBIC)
