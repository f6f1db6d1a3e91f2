"""`optimize_for_inference` on a GPU: the outputs of real CUDA graphs are bitwise equal to those of plain calls."""

import copy

import pytest
import timm
import torch
from torch import nn

from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.runtime.cuda_graphs import GraphedMethod, replay_from_graphs
from sparse_vlm.encoder.runtime.inference import optimize_for_inference
from tests.encoder.runtime.replays import CpuRecorder


def optimise(model: nn.Module, device: torch.device) -> None:
    """Call `optimize_for_inference`; on the CPU, use a stand-in that captures there."""
    if device.type == "cuda":
        optimize_for_inference(model)
    else:
        replay_from_graphs(model, CpuRecorder())
    assert isinstance(model.forward, GraphedMethod)


def images(device: torch.device, batch: int, side: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed)).to(device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_replays_are_exact(tiny_encoder: SparseFormer, device: torch.device, dtype: torch.dtype) -> None:
    plain = tiny_encoder.to(device, dtype)
    graphed = copy.deepcopy(plain)
    optimise(graphed, device)
    kept = []
    for seed in range(4):  # several shapes in turn, as their graphs share memory
        for batch, side in ((1, 64), (3, 64), (2, 96)):
            batch_images = images(device, batch, side, seed)
            found, expected = graphed(batch_images), plain(batch_images)
            (state,) = graphed.hidden_states(batch_images, [-2])
            kept.append((found, expected))
            assert torch.equal(state, expected.hidden_states[-2])
    for found, expected in kept:
        for ours, theirs in zip([*found[:3], *found[3]], [*expected[:3], *expected[3]], strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.slow
@torch.inference_mode()
def test_more_shapes_than_graphs(tiny_encoder: SparseFormer, device: torch.device) -> None:
    plain = tiny_encoder.to(device)
    graphed = copy.deepcopy(plain)
    optimise(graphed, device)
    for turn in range(3):
        for batch in range(1, 12):
            for _ in range(2):
                batch_images = images(device, batch, seed=turn)
                assert torch.equal(graphed(batch_images).tokens, plain(batch_images).tokens)


@torch.inference_mode()
def test_moved_weights_are_captured_again(tiny_encoder: SparseFormer, device: torch.device) -> None:
    graphed = tiny_encoder.to(device)
    expected = graphed(images(device, 2)).pooled
    optimise(graphed, device)
    for _ in range(2):
        for _ in range(3):
            assert torch.equal(graphed(images(device, 2)).pooled, expected)
        graphed.double().float()
        graphed.cpu().to(device)


@torch.inference_mode()
def test_a_dense_vit(device: torch.device) -> None:
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5).eval().to(device)
    expected = vit(images(device, 3, 32))
    optimise(vit, device)
    assert all(torch.equal(vit(images(device, 3, 32)), expected) for _ in range(4))
