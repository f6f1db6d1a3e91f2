"""The set-to-grid decoder: cells in row-major order, tokens as a set with places, no gradient to RoIs."""

import torch

from sparse_vlm.bootstrap.grid_decoder import GridDecoder
from sparse_vlm.encoder.rois import lay_out_grid, lay_out_rois


def test_cells_are_the_layout_of_as_many_tokens() -> None:
    assert torch.allclose(lay_out_grid(4, 4), lay_out_rois(16))
    assert torch.allclose(lay_out_grid(1, 2), torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]]))
    assert torch.allclose(lay_out_grid(2, 1), torch.tensor([[0.0, 0.0, 1.0, 0.5], [0.0, 0.5, 1.0, 1.0]]))


def test_the_order_of_tokens_does_not_matter_but_their_places_do() -> None:
    torch.manual_seed(0)
    decoder = GridDecoder(24, width=64, depth=1)
    tokens, rois = torch.randn(2, 5, 24), lay_out_rois(5).expand(2, -1, -1)
    order = torch.tensor([3, 0, 4, 1, 2])
    rebuilt = decoder(tokens, rois, (3, 4))
    assert rebuilt.shape == (2, 12, 24)
    assert torch.allclose(decoder(tokens[:, order], rois[:, order], (3, 4)), rebuilt, atol=1e-5)
    assert not torch.allclose(decoder(tokens[:, order], rois, (3, 4)), rebuilt, atol=1e-3)


def test_no_gradient_reaches_the_rois() -> None:
    rois = lay_out_rois(4)[None].requires_grad_()
    tokens = torch.randn(1, 4, 24, requires_grad=True)
    GridDecoder(24, width=64, depth=1)(tokens, rois, (2, 2)).sum().backward()
    assert rois.grad is None
    assert tokens.grad is not None


def test_it_learns_to_rebuild_a_grid_from_tokens_in_it() -> None:
    """Each token is the mean of the four cells under its RoI, so only a decoder that reads places can succeed."""
    torch.manual_seed(0)
    decoder = GridDecoder(8, width=64, depth=1)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=3e-3)
    rois, losses = lay_out_rois(4).expand(64, -1, -1), []
    for _ in range(150):
        tokens = torch.randn(64, 4, 8)
        grid = tokens.unflatten(1, (2, 2)).repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1, 2)
        loss = (decoder(tokens, rois, (4, 4)) - grid).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.8 > 0.3 > losses[-1]  # the mean of the four tokens would leave 0.75
