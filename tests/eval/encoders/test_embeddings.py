"""Embeddings of sets of images: batches give the same results as single images."""

from dataclasses import replace

import pytest
import torch
from torch.utils.data import Subset

from eval.encoders.embeddings import embed_images
from eval.encoders.zero_shot import easy_vqa_images
from sparse_vlm.data.images.labels import LabelledImages
from sparse_vlm.encoder import SparseFormer
from sparse_vlm.errors import UserError
from sparse_vlm.image_files import open_image


def test_embeddings_of_an_encoder(tiny_encoder: SparseFormer) -> None:
    labels = easy_vqa_images("test")
    images = LabelledImages(labels, tiny_encoder.transform)
    found = embed_images(lambda pixels: tiny_encoder(pixels).pooled, Subset(images, range(5)), batch_size=2)
    with torch.inference_mode():
        single = [tiny_encoder(tiny_encoder.transform(open_image(path))[None]).pooled[0] for path in labels.paths[:5]]
    torch.testing.assert_close(found, torch.stack(single), atol=1e-5, rtol=1e-4)


def test_a_missing_image_is_an_error(tiny_encoder: SparseFormer) -> None:
    labels = easy_vqa_images("test")
    absent = replace(labels, paths=(labels.paths[0].with_name("absent.png"), *labels.paths[1:]))
    with pytest.raises(UserError, match=r"absent\.png does not exist"):
        embed_images(lambda pixels: pixels.flatten(1), LabelledImages(absent, tiny_encoder.transform))
