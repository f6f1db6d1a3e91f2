"""Encoders on a fake GPU: no tensor stays on the CPU, and no forward pass synchronises with the GPU."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from sparse_vlm.draw import undo_normalisation
from sparse_vlm.encoder import SparseFormer, SparseFormerConfig, create_encoder
from sparse_vlm.encoder.batches import encode_canvases, select_hidden_states
from sparse_vlm.encoder.float32 import Float32Module
from sparse_vlm.encoder.runtime.sampling_steps import record_sampling_steps
from tests.fake_gpu import assert_on_gpu, fake_gpu


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["sparseformer-v1-t", "sparseformer-augreg-b", "sparseformer-clip-b"])
def test_an_encoder(name: str, dtype: torch.dtype) -> None:
    with torch.device("meta"):
        encoder = create_encoder(name).eval()
    encoder.to_empty(device="cpu")  # a fake GPU needs no values
    with fake_gpu() as gpu:
        output = gpu.move(encoder, dtype)(torch.randn(2, 3, 64, 96, device="cuda"))
        assert_on_gpu(*output)
        assert (output.pooled.dtype, output.rois.dtype) == (dtype, torch.float32)
        assert_on_gpu(encoder.hidden_states(torch.randn(2, 3, 64, 96, device="cuda"), [-2, 0]))
        islands = [module for module in encoder.modules() if isinstance(module, Float32Module)]
        assert islands
        assert {p.dtype for island in islands for p in island.parameters()} == {torch.float32}


@pytest.mark.slow
def test_register_tokens(tiny_config: SparseFormerConfig) -> None:
    cortex = replace(tiny_config.cortex, architecture="vit_small_patch14_reg4_dinov2")
    encoder = SparseFormer(replace(tiny_config, cortex=cortex)).eval()
    assert encoder.num_register_tokens == 4
    with fake_gpu() as gpu:
        assert_on_gpu(*gpu.move(encoder)(torch.randn(2, 3, 64, 64, device="cuda")))


def test_autocast_leaves_coordinates_alone(tiny_encoder: SparseFormer) -> None:
    with fake_gpu() as gpu, torch.autocast("cuda", torch.bfloat16):
        output = gpu.move(tiny_encoder)(torch.randn(2, 3, 64, 64, device="cuda"))
        assert_on_gpu(*output)
        assert (output.pooled.dtype, output.rois.dtype) == (torch.bfloat16, torch.float32)


def test_a_fake_gpu_refuses_what_a_gpu_refuses(tiny_encoder: SparseFormer) -> None:
    flag = torch.__future__.get_overwrite_module_params_on_conversion()
    with fake_gpu() as gpu:
        gpu.move(tiny_encoder)
        with pytest.raises(RuntimeError, match="device"):
            tiny_encoder(torch.randn(2, 3, 64, 64))
        with pytest.raises(RuntimeError, match="_local_scalar_dense"):
            tiny_encoder(torch.randn(2, 3, 64, 64, device="cuda")).pooled.sum().item()
    assert torch.__future__.get_overwrite_module_params_on_conversion() == flag
    assert torch.ones(2).sum().item() == 2


@pytest.mark.slow
def test_canvases_synchronise_once(tiny_encoder: SparseFormer, monkeypatch: pytest.MonkeyPatch) -> None:
    canvases = torch.full((3, 3, 64, 64), torch.nan)
    for canvas, (height, width) in zip(canvases, ((64, 20), (40, 64), (64, 20)), strict=True):
        canvas[:, :height, :width] = 0
    asked: list[torch.Tensor] = []
    with fake_gpu() as gpu:
        gpu.move(tiny_encoder)

        def tolist(tensor: torch.Tensor) -> list[list[int]]:
            assert_on_gpu(tensor)
            asked.append(tensor)
            return [[64, 20], [40, 64], [64, 20]]

        monkeypatch.setattr(FakeTensor, "tolist", tolist)
        assert_on_gpu(*encode_canvases(tiny_encoder, canvases.to("cuda")))
        assert_on_gpu(select_hidden_states(tiny_encoder, canvases.to("cuda"), [-2], "native"))
    assert [tensor.shape for tensor in asked] == [(3, 2)] * 2


def test_recorded_sampling_steps(tiny_encoder: SparseFormer) -> None:
    with fake_gpu() as gpu:
        steps = record_sampling_steps(gpu.move(tiny_encoder), torch.randn(2, 3, 64, 64, device="cuda"))
        assert [(step.rois.device.type, step.points.device.type) for step in steps] == [("cpu", "cpu")] * 3
        seen = undo_normalisation(torch.randn(2, 3, 64, 64, device="cuda"), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
        assert (seen.shape, seen.device.type) == ((2, 64, 64, 3), "cpu")
