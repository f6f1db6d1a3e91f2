"""Zero-shot classification: which caption's embedding is nearest to the picture's.

For CLIP-like teachers (open_clip) and for SparseFormers bootstrapped from them, which share the teacher's text side.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from eval.metrics import wilson_interval
from eval.protocol import Score
from sparse_vlm.data import easy_vqa
from sparse_vlm.data.images import open_image
from sparse_vlm.encoder.preprocessing import Preprocessing, Transform
from sparse_vlm.errors import UserError


def embed_images(
    encode: Callable[[Tensor], Tensor],
    paths: Sequence[Path],
    preprocessing: Preprocessing,
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Unit embeddings of image files.

    Args:
        encode: float[B, 3, H, W] -> float[B, D]; e.g. an open teacher, or `lambda x: encoder(x).pooled`.
        paths: image files.
        preprocessing: what belongs to the weights.
        batch_size: images at a time.
        device: of the weights.

    Returns:
        float32[len(paths), D] on the CPU.

    Raises:
        UserError: an image is missing or damaged.
    """
    transform = Transform(preprocessing)
    embeddings = []
    with torch.inference_mode():
        for start in tqdm(range(0, len(paths), batch_size), desc="embed images", unit="batch"):
            images = torch.stack([transform(open_image(path)) for path in paths[start : start + batch_size]])
            embeddings.append(F.normalize(encode(images.to(device)).float(), dim=-1).cpu())
    return torch.cat(embeddings)


def accuracy(images: Tensor, classes: Tensor, labels: Sequence[int]) -> Score:
    """Share of images whose nearest class embedding is their label's, with Wilson's 95% interval.

    Args:
        images: unit embeddings float[N, D].
        classes: unit embeddings of one caption per class, float[K, D].
        labels: N class indices.

    Raises:
        UserError: image and text embeddings have different widths.
    """
    if images.shape[-1] != classes.shape[-1]:
        raise UserError(
            f"Image embeddings have {images.shape[-1]} channels, text embeddings {classes.shape[-1]}: "
            "this text side does not belong to this image encoder."
        )
    nearest = (images @ classes.T).argmax(dim=-1)
    right = int((nearest == torch.as_tensor(labels)).sum())
    return Score(right / len(labels), len(labels), wilson_interval(right, len(labels)))


def easy_vqa_images(split: Literal["train", "test"]) -> tuple[list[Path], list[int], list[str]]:
    """easy-VQA as 24 classes (colour × shape): the pictures whose class follows from their questions.

    Returns:
        image files, their class indices, and one caption per class ("a red circle").
    """
    attributes = easy_vqa.attributes_from_questions(easy_vqa.load_questions(split))
    folder = easy_vqa.split_folder(split) / "images"
    paths = [easy_vqa.image_path(folder, image_id) for image_id in attributes]
    labels = [easy_vqa.CLASSES.index(shown) for shown in attributes.values()]
    return paths, labels, [shown.caption for shown in easy_vqa.CLASSES]
