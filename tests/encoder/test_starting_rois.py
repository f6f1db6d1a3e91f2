"""Initial RoIs and numbers of tokens as inputs of an encoder."""

import logging
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sparse_vlm.encoder import SparseFormer, SparseFormerConfig
from sparse_vlm.encoder.batches import encode_canvases, select_hidden_states
from sparse_vlm.encoder.model import _log_untrained_count
from sparse_vlm.encoder.rois import lay_out_rois
from sparse_vlm.errors import UserError
from tests.encoder.parity.official import load_official


@pytest.fixture
def encoder(tiny_config: SparseFormerConfig) -> SparseFormer:
    torch.manual_seed(0)
    return SparseFormer(replace(tiny_config, trained_tokens="1-9")).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 40, 56, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 2, 7])
def test_any_number_of_tokens(encoder: SparseFormer, images: Tensor, count: int) -> None:
    output = encoder(images, tokens=count)
    assert output.tokens.shape[1] == encoder.num_prefix_tokens + count
    assert output.rois.shape[1:] == (3, count, 4)
    torch.testing.assert_close(encoder(images, lay_out_rois(count)).pooled, output.pooled)
    torch.testing.assert_close(encoder.hidden_states(images, [-1], tokens=count)[0], output.tokens)


@torch.no_grad()
def test_the_learned_rois_are_an_input_like_any_other(encoder: SparseFormer, images: Tensor) -> None:
    learned = encoder.focus.initial_rois.weight
    torch.testing.assert_close(encoder(images, learned), encoder(images))


@torch.no_grad()
def test_each_image_has_its_own_rois(encoder: SparseFormer, images: Tensor) -> None:
    rois = torch.stack([lay_out_rois(4, (0.1 * i, 0.0, 1.0, 0.5 + 0.1 * i)) for i in range(3)])
    together = encoder(images, rois)
    for index in range(3):
        alone = encoder(images[index : index + 1], rois[index])
        torch.testing.assert_close(alone.pooled[0], together.pooled[index])


@torch.no_grad()
def test_the_order_of_the_rois_is_the_order_of_the_tokens(encoder: SparseFormer, images: Tensor) -> None:
    order = torch.tensor([2, 0, 3, 1])
    prefix = encoder.num_prefix_tokens
    straight, shuffled = encoder(images, lay_out_rois(4)), encoder(images, lay_out_rois(4)[order])
    torch.testing.assert_close(straight.tokens[:, prefix:][:, order], shuffled.tokens[:, prefix:])
    torch.testing.assert_close(straight.pooled, shuffled.pooled)


@torch.no_grad()
def test_rois_of_images_on_canvases(encoder: SparseFormer) -> None:
    canvases = torch.full((2, 3, 40, 40), torch.nan)
    canvases[0, :, :20], canvases[1, :, :, :30] = torch.randn(3, 20, 40), torch.randn(3, 40, 30)
    rois = torch.stack([lay_out_rois(3), lay_out_rois(3, (0, 0, 0.5, 0.5))])
    output = encode_canvases(encoder, canvases, rois)
    torch.testing.assert_close(output.pooled[1:], encoder(canvases[1:, :, :, :30], rois[1]).pooled)
    torch.testing.assert_close(select_hidden_states(encoder, canvases, [-1], "native", rois)[0], output.tokens)
    assert encode_canvases(encoder, canvases, tokens=5).rois.shape[2] == 5


@pytest.mark.slow
@torch.no_grad()
def test_an_exported_program_takes_any_number_of_rois(encoder: SparseFormer, images: Tensor) -> None:
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")
    rois = lay_out_rois(5).expand(3, -1, -1)
    program = torch.export.export(encoder, (images, rois), dynamic_shapes=({0: batch}, {0: batch, 1: tokens}))
    other = lay_out_rois(8).expand(2, -1, -1)
    torch.testing.assert_close(program.module()(images[:2], other), encoder(images[:2], other))


@torch.no_grad()
def test_a_count_that_was_not_trained_is_said_once(
    encoder: SparseFormer, images: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    _log_untrained_count.cache_clear()
    with caplog.at_level(logging.WARNING):
        for count in (4, 12, 12):
            encoder(images, tokens=count)
    assert caplog.messages == ["This encoder was trained with 1-9 latent tokens and is used with 12."]


NAN = torch.tensor([[0, 0, 1, torch.nan]])
MISTAKES = [
    ({"tokens": 0}, "An image needs at least 1 token, got 0"),
    ({"tokens": -3}, "got -3"),
    ({"rois": torch.rand(4)}, r"RoIs are float\[n, 4\] or, for 3 images, float\[3, n, 4\] with n ≥ 1, got \[4\]"),
    ({"rois": torch.rand(2, 5, 4)}, r"got \[2, 5, 4\]"),
    ({"rois": torch.rand(3, 5)}, r"got \[3, 5\]"),
    ({"rois": torch.rand(0, 4)}, r"got \[0, 4\]"),
    ({"rois": torch.ones(2, 4, dtype=torch.int64)}, "floating-point image coordinates, got int64"),
    ({"rois": NAN}, "must be finite"),
    ({"rois": torch.tensor([[0.2, 0.2, 0.2, 0.4]])}, "must have a width and a height"),
    ({"rois": lay_out_rois(4), "tokens": 4}, r"either rois or tokens \(4\)"),
]


@pytest.mark.parametrize(("asked", "sentence"), MISTAKES)
def test_bad_rois_are_refused(encoder: SparseFormer, images: Tensor, asked: dict[str, Tensor], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        encoder(images, **asked)
    with pytest.raises(UserError, match=sentence):
        encoder.hidden_states(images, [-1], **asked)


@pytest.mark.parametrize("asked", [{"tokens": 49}, {"rois": lay_out_rois(4)}])
def test_v1_refuses(asked: dict[str, Tensor], images: Tensor) -> None:
    with pytest.raises(UserError, match="is a SparseFormer v1, whose 7 tokens have an embedding each"):
        load_official("v1_tiny")(images, **asked)
