"""Representations: against the models themselves, and forward passes counted with a cache."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eval.encoders.pair import ImageEncoder, student_encoders, teacher_encoder
from eval.encoders.probing.representations import ImageSets, represent
from sparse_vlm.bootstrap import open_teacher
from sparse_vlm.errors import UserError


class Counted:
    """An encoder whose forward passes are counted."""

    def __init__(self, encoder: ImageEncoder, photos: Path, samples: int | None = None) -> None:
        self.encoder, self.passes, self.samples = encoder, 0, samples
        self.images = ImageSets(str(photos / "train"), str(photos / "test"), samples)
        encoder.module.register_forward_hook(lambda *_: setattr(self, "passes", self.passes + 1))

    def represent(self, cache: Path | None, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
        return represent(self.encoder, self.images.open(self.encoder)[0], cache, batch_size=5, dtype=dtype)


def test_a_teacher_is_run_once_for_all_representations(deep_clip_dir: Path, photos: Path) -> None:
    teacher = open_teacher(str(deep_clip_dir))
    counted = Counted(teacher_encoder(teacher, torch.float32), photos)
    found = counted.represent(None)
    assert counted.passes == 3  # batches
    images = counted.images.open(counted.encoder)[0].images
    pixels = torch.stack([images[index]["pixel_values"] for index in range(12)])
    torch.testing.assert_close(found["pooled"], teacher(pixels))
    features = teacher.trunk.forward_intermediates(pixels, output_fmt="NLC", intermediates_only=True)
    torch.testing.assert_close(found["layer_-2"], features[-2].mean(1))
    torch.testing.assert_close(found["layer_-1"], features[-1].mean(1))


def test_forward_passes_with_a_cache(student_dir: Path, photos: Path, tmp_path: Path) -> None:
    """None if nothing changed; all of them if the weights, tokens, dtype, preprocessing or images did."""
    cache = tmp_path / "cache"

    def passes(name: str = "student", samples: int | None = None, dtype: torch.dtype = torch.float32) -> int:
        encoders = student_encoders(student_dir, "cpu", dtype, (3, 5))
        counted = Counted(encoders[name], photos, samples)
        counted.represent(cache, dtype)
        return counted.passes

    assert (passes(), passes()) == (3, 0)
    assert (passes("student_3_tokens"), passes("student_3_tokens")) == (3, 0)
    assert passes("student_5_tokens") == 3, "its initial RoIs are laid out, not the checkpoint's"
    assert (passes(samples=6), passes(samples=6)) == (2, 0)
    assert (passes(dtype=torch.bfloat16), passes(dtype=torch.bfloat16)) == (3, 0)

    counted = Counted(student_encoders(student_dir, "cpu", torch.float32)["student"], photos)
    smaller = replace(counted.encoder.preprocessing, crop=counted.encoder.preprocessing.crop - 4)
    counted.encoder = counted.encoder._replace(preprocessing=smaller)
    counted.represent(cache)
    assert counted.passes == 3
    with torch.no_grad():
        next(counted.encoder.module.parameters()).add_(1e-3)
    counted.represent(cache)
    assert counted.passes == 6

    image = next((photos / "train" / "red").iterdir())
    image.write_bytes(image.read_bytes())  # the same content, but a new time of change
    assert passes() == 3


def test_diverged_weights_are_named(student_dir: Path, photos: Path) -> None:
    counted = Counted(student_encoders(student_dir, "cpu", torch.float32)["student"], photos)
    with torch.no_grad():
        for weight in counted.encoder.module.parameters():
            weight.fill_(torch.nan)
    with pytest.raises(UserError, match="'pooled' is NaN or infinite for 12 of 12 images"):
        counted.represent(None)
