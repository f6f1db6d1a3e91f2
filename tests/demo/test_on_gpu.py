"""RoIs and pixels for the demo's drawings move from the GPU to the CPU."""

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor
from transformers import BatchFeature

from demo.attention import sampling_steps, seen_pixels
from demo.models import open_model
from tests.fake_gpu import fake_gpu


@pytest.mark.slow
def test_rois_and_pixels_are_on_the_cpu(vlm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_model(vlm_dir, torch.device("cpu"), torch.float32, None)
    with fake_gpu() as gpu:
        gpu.move(opened.model, torch.bfloat16)
        monkeypatch.setattr(FakeTensor, "tolist", lambda _: [[64, 64]])  # the size of each image
        images = torch.randn(2, 3, 64, 64, device="cuda", dtype=torch.bfloat16)
        for steps in sampling_steps(opened, BatchFeature({"pixel_values": images})):
            assert [(tuple(step.rois.shape), step.rois.device.type) for step in steps] == [((1, 6, 4), "cpu")] * 3
        assert [(image.shape, image.device.type) for image in seen_pixels(opened, images)] == [((64, 64, 3), "cpu")] * 2
