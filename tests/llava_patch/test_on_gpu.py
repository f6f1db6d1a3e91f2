"""The tower on a fake GPU, called as LLaVA calls it."""

import pytest
import torch

from llava_patch.tower import SparseFormerTower
from tests.fake_gpu import assert_on_gpu, fake_gpu
from tests.llava_patch.test_tower import arguments


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("trains", [False, True])
def test_a_tower(tower: str, dtype: torch.dtype, trains: bool) -> None:
    built = SparseFormerTower(tower, arguments())
    built.vision_tower.requires_grad_(trains)
    with fake_gpu() as gpu:
        gpu.move(built, dtype)
        images = torch.randn(2, 3, 64, 64, device="cuda")
        assert (built.device.type, built.dtype) == ("cuda", dtype)
        assert_on_gpu(built(images), built([images[0], images[1, :, :32]]), built.dummy_feature)
        assert_on_gpu(built(torch.randn(2, 3, 64, 64)).to("cuda"))  # LLaVA may leave images on the CPU


def test_auto_is_the_accelerator(tower: str, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[object] = []
    monkeypatch.setattr("llava_patch.tower.choose_device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr("sparse_vlm.encoder.SparseFormer.to", lambda _, device: moved.append(device))
    built = SparseFormerTower(tower, arguments(), delay_load=True)
    built.load_model(device_map="auto")
    assert moved == [torch.device("cuda", 0)]
