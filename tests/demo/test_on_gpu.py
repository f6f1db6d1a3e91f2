"""What the demo draws comes from the GPU to the CPU."""

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from demo.looking import look, seen_pixels
from demo.models import open_model
from tests.fake_gpu import fake_gpu


@pytest.mark.slow
def test_where_a_model_looks(vlm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_model(vlm_dir, torch.device("cpu"), torch.float32, None)
    with fake_gpu() as gpu:
        gpu.move(opened.model, torch.bfloat16)
        monkeypatch.setattr(FakeTensor, "tolist", lambda _: [[64, 64]])  # an image's size is a number
        images = torch.randn(2, 3, 64, 64, device="cuda", dtype=torch.bfloat16)
        glances = look(opened, images)
        assert [(tuple(glance.rois.shape), glance.rois.device.type) for glance in glances] == [((2, 6, 4), "cpu")] * 3
        assert [(image.shape, image.device.type) for image in seen_pixels(opened, images)] == [((64, 64, 3), "cpu")] * 2
