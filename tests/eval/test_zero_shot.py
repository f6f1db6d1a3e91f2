"""Zero-shot classification with a real open_clip text side, a real teacher and its SparseFormer."""

from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from eval.zero_shot import accuracy, easy_vqa_images, embed_images
from sparse_vlm.data.images import open_image
from sparse_vlm.encoder import SparseFormer
from sparse_vlm.errors import UserError


def test_the_classes_of_the_real_test_images() -> None:
    paths, labels, captions = easy_vqa_images("test")
    assert len(paths) == len(labels) == 888
    assert len(set(captions)) == 24
    assert set(Counter(labels)) == set(range(24))
    assert all(path.is_file() for path in paths)
    assert captions[0] == "a black circle"


def test_embeddings_of_an_encoder(tiny_encoder: SparseFormer) -> None:
    """In batches as one by one, of unit length, with the encoder's own preprocessing."""
    paths = easy_vqa_images("test")[0][:5]
    found = embed_images(
        lambda images: tiny_encoder(images).pooled, paths, tiny_encoder.config.preprocessing, batch_size=2
    )
    with torch.inference_mode():
        single = [tiny_encoder(tiny_encoder.transform(open_image(path))[None]).pooled[0] for path in paths]
    torch.testing.assert_close(found, F.normalize(torch.stack(single), dim=-1), atol=1e-5, rtol=1e-4)
    with pytest.raises(UserError, match=r"absent\.png does not exist"):
        embed_images(lambda images: images, [Path("absent.png")], tiny_encoder.config.preprocessing)


def test_accuracy_counts_the_nearest_class() -> None:
    classes = torch.eye(3)
    images = F.normalize(torch.tensor([[2.0, 1, 0], [0, 1, 0.9], [0, 1, 2], [1, 0, 0]]), dim=-1)
    score = accuracy(images, classes, [0, 1, 2, 1])
    assert (score.value, score.count) == (0.75, 4)
    assert score.interval[0] < 0.75 < score.interval[1]
    with pytest.raises(UserError, match="3 channels, text embeddings 4"):
        accuracy(images, torch.eye(4), [0, 1, 2, 1])


def test_a_real_clip_text_side() -> None:
    """open_clip's text tower of a real (tiny, random) CLIP embeds the captions; its images score near chance."""
    from open_clip import CLIP, get_tokenizer

    torch.manual_seed(0)
    vision = {"image_size": 64, "patch_size": 16, "width": 64, "layers": 1}
    text = {"width": 64, "heads": 2, "layers": 1}
    clip = CLIP(12, vision, text).eval()
    paths, labels, captions = easy_vqa_images("test")
    with torch.inference_mode():
        classes = F.normalize(clip.encode_text(get_tokenizer("ViT-B-32")(captions)), dim=-1)
    from sparse_vlm.encoder import Preprocessing

    images = embed_images(clip.encode_image, paths[:200], Preprocessing(64, 64))
    assert images.shape == (200, 12)
    assert accuracy(images, classes, labels[:200]).value < 0.3
    # the same function finds every class when an image lies at its caption
    assert accuracy(classes, classes, range(24)).value == 1
