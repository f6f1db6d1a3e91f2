"""Replayed calls give the same outputs as normal calls, and calls that cannot be captured run normally.

A stand-in captures on the CPU; tests/gpu tests real graphs.
"""

import copy
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from sparse_vlm.encoder import EncoderOutput, SparseFormer
from sparse_vlm.encoder.batches import select_hidden_states
from sparse_vlm.encoder.runtime.cuda_graphs import GraphedMethod, replay_from_graphs
from sparse_vlm.encoder.runtime.sampling_steps import record_sampling_steps
from sparse_vlm.errors import UserError
from tests.encoder.runtime.replays import CpuRecorder


@pytest.fixture
def recorder() -> CpuRecorder:
    return CpuRecorder()


@pytest.fixture
def graphed(tiny_encoder: SparseFormer, recorder: CpuRecorder) -> SparseFormer:
    """A copy of the tiny encoder that replays."""
    encoder = copy.deepcopy(tiny_encoder)
    replay_from_graphs(encoder, recorder)
    return encoder


def images(batch: int = 2, side: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_replayed_calls_equal_normal_calls(
    mode: type, tiny_encoder: SparseFormer, graphed: SparseFormer, recorder: CpuRecorder
) -> None:
    tiny_encoder.requires_grad_(False)
    with mode():
        for seed in range(4):
            batch = images(seed=seed)
            expected, found = tiny_encoder(batch), graphed(batch)
            assert isinstance(found, EncoderOutput)
            assert found.tokens is found.hidden_states[-1]
            for ours, plain in zip([*found[:3], *found[3]], [*expected[:3], *expected[3]], strict=True):
                assert torch.equal(ours, plain)
            (state,) = graphed.hidden_states(batch, [-2])
            assert torch.equal(state, expected.hidden_states[-2])
    assert (recorder.captures, recorder.replays) == (2, 6), "each method: one plain call, one capture, three replays"


def test_modes_may_alternate(graphed: SparseFormer, recorder: CpuRecorder) -> None:
    """Tensors created in inference mode cannot be written to outside it."""
    for mode in (torch.inference_mode, torch.inference_mode, torch.no_grad, torch.inference_mode, torch.no_grad):
        with mode():
            graphed(images())
    assert recorder.replays == 4


@torch.inference_mode()
def test_outputs_are_copies(graphed: SparseFormer) -> None:
    kept = [graphed(images(seed=seed)).pooled for seed in range(4)]
    before = [pooled.clone() for pooled in kept]
    graphed(images(seed=9))
    assert all(torch.equal(now, then) for now, then in zip(kept, before, strict=True))
    assert len({float(pooled.sum()) for pooled in kept}) == 4


@torch.inference_mode()
def test_a_graph_for_each_shape_dtype_and_layers(graphed: SparseFormer, recorder: CpuRecorder) -> None:
    for _ in range(3):
        graphed(images(1))
        graphed(images(2))
        graphed(images(2, side=32))
        graphed(images(2).double())
        graphed.hidden_states(images(2), [-1])
        graphed.hidden_states(images(2), layers=(-1, 0))
    assert (recorder.captures, recorder.replays) == (6, 12)
    assert recorder.pools[0] is None
    assert len(set(recorder.pools[1:4])) == 1, "one method's graphs share their memory"


@torch.inference_mode()
def test_a_size_that_occurs_once_is_not_captured(graphed: SparseFormer, recorder: CpuRecorder) -> None:
    for side in range(32, 96, 2):
        graphed(images(1, side))
    assert recorder.captures == 0


@torch.inference_mode()
def test_the_number_of_graphs_is_bounded(tiny_encoder: SparseFormer, recorder: CpuRecorder) -> None:
    method = GraphedMethod(tiny_encoder.requires_grad_(False), tiny_encoder.forward, recorder, limit=2)
    for batch in (1, 1, 2, 2, 1, 3, 3, 1, 2):  # 3 replaces 2, which was used less recently than 1
        method(images(batch))
    assert len(method._held) == 2
    assert recorder.captures == 3
    assert recorder.replays == 5


@torch.inference_mode()
def test_moved_weights_are_captured_again(
    tiny_encoder: SparseFormer, graphed: SparseFormer, recorder: CpuRecorder
) -> None:
    for _ in range(2):
        graphed(images())
    nn.Sequential(graphed).double().float()
    assert all(torch.equal(*pair) for pair in zip(graphed(images())[:3], tiny_encoder(images())[:3], strict=True))
    graphed(images())
    assert recorder.captures == 2


@torch.inference_mode()
def test_loaded_weights_are_used(tiny_encoder: SparseFormer, graphed: SparseFormer) -> None:
    for assign in (False, True):
        for _ in range(2):
            graphed(images())
        for weight in tiny_encoder.parameters():
            weight.mul_(1.1)
        graphed.load_state_dict(
            {name: value.clone() for name, value in tiny_encoder.state_dict().items()}, assign=assign
        )
        for _ in range(2):
            assert torch.equal(graphed(images()).tokens, tiny_encoder(images()).tokens)


def test_hooks_inside_the_model_are_not_skipped(graphed: SparseFormer, recorder: CpuRecorder) -> None:
    with torch.inference_mode():
        for _ in range(2):
            graphed(images())
    assert len(record_sampling_steps(graphed, images())) == 3
    assert recorder.replays == 1


@torch.inference_mode()
def test_autocast_is_not_captured(graphed: SparseFormer, recorder: CpuRecorder) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            assert graphed(images()).tokens.dtype == torch.bfloat16
    assert recorder.captures == 0


@torch.inference_mode()
def test_images_in_their_native_aspect(
    tiny_encoder: SparseFormer, graphed: SparseFormer, recorder: CpuRecorder
) -> None:
    canvases = images(2)
    canvases[0, :, 32:] = torch.nan
    for _ in range(3):
        (found,), (expected,) = (
            select_hidden_states(encoder, canvases, [-1], "native") for encoder in (graphed, tiny_encoder)
        )
        assert torch.equal(found, expected)
    assert recorder.captures == 2


@torch.inference_mode()
def test_a_dense_vit_gives_the_same_output(recorder: CpuRecorder) -> None:
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5).eval()
    expected = vit(images(3, 32))
    replay_from_graphs(vit, recorder)
    replay_from_graphs(vit, recorder)
    assert all(torch.equal(vit(images(3, 32)), expected) for _ in range(3))
    assert (recorder.captures, recorder.replays) == (1, 2), "optimised twice is optimised once"


def test_training_is_a_user_error(graphed: SparseFormer) -> None:
    with pytest.raises(UserError, match="was optimised for inference and cannot be trained"):
        graphed.train()(images())
    graphed.eval()
    with pytest.raises(UserError, match="cannot be trained"):
        graphed(images().requires_grad_())
    with pytest.raises(UserError, match="cannot be trained"):
        graphed.requires_grad_(True).hidden_states(images(), [-1])


def test_copying_is_a_user_error(graphed: SparseFormer, tmp_path: Path) -> None:
    """A copy would keep using the graphs, and therefore the weights, of the original."""
    with pytest.raises(UserError, match="cannot be copied"):
        copy.deepcopy(graphed)
    with pytest.raises(UserError, match="cannot be copied"):
        torch.save(graphed, tmp_path / "encoder.pt")


def test_the_weights_can_be_saved(tiny_encoder: SparseFormer, graphed: SparseFormer, tmp_path: Path) -> None:
    graphed.save_pretrained(tmp_path / "encoder")
    saved = SparseFormer.from_pretrained(tmp_path / "encoder").state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in tiny_encoder.state_dict().items())


@torch.inference_mode()
def test_invalid_images_give_the_same_error(graphed: SparseFormer) -> None:
    for _ in range(2):
        with pytest.raises(UserError, match="expects a non-empty batch of RGB images"):
            graphed(images()[:, :2])
        with pytest.raises(UserError, match="Hidden state 9 does not exist"):
            graphed.hidden_states(images(), [9])


@torch.no_grad()
def test_a_graph_for_each_number_of_rois(
    tiny_encoder: SparseFormer, graphed: SparseFormer, recorder: CpuRecorder
) -> None:
    batch = images()
    for seed in range(3):
        rois = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(graphed(batch, rois=rois).tokens, tiny_encoder(batch, rois).tokens)
        assert torch.equal(
            graphed.hidden_states(batch, [1], tokens=5)[0], tiny_encoder(batch, tokens=5).hidden_states[1]
        )
    assert (recorder.captures, recorder.replays) == (2, 4)
    with pytest.raises(UserError, match="at least 1 token"):
        graphed(batch, tokens=0)
