"""The focusing transformer: which RoIs it reports, how its repetitions share weights, and adaptive mixing."""

import pytest
import torch
import torch.nn.functional as F

from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.focusing import AdaptiveMixing
from tests.encoder.parity.official import load_official, recorded


@pytest.mark.parametrize(("name", "adjustments"), [("v1_tiny", 3 + 1), ("btsp_clip_tiny", 4)])
@torch.no_grad()
def test_one_set_of_rois_per_adjustment(name: str, adjustments: int) -> None:
    encoder = load_official(name)
    images = recorded(name, "a")["input"]
    rois = encoder(images).rois
    assert rois.shape == (adjustments, 2, encoder.config.focus.tokens, 4)
    seen = []
    encoder.focus.last_unit.sampling.points.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    encoder(images)
    assert torch.equal(seen[0], rois[-1])  # the tokens sampled last inside the last RoIs


@torch.no_grad()
def test_rois_differ_between_images_and_steps() -> None:
    rois = load_official("btsp_clip_tiny")(recorded("btsp_clip_tiny", "a")["input"]).rois
    assert (rois[:, 0] != rois[:, 1]).any(dim=-1).all()
    assert (rois[1:] != rois[:-1]).any(dim=-1).all()


def test_the_bootstrapped_model_shares_one_initial_embedding() -> None:
    assert load_official("btsp_clip_tiny").focus.initial_embedding.shape == (1, 64)
    assert load_official("v1_tiny").focus.initial_embedding.shape == (7, 64)


@torch.no_grad()
def test_more_repeats_only_add_stage_embeddings(tiny_encoder: SparseFormer) -> None:
    values = tiny_encoder.config.to_dict()
    longer = SparseFormer(type(tiny_encoder.config).from_dict(values | {"focus": values["focus"] | {"repeats": 5}}))
    assert longer.num_parameters - tiny_encoder.num_parameters == (5 - 2) * 64
    assert longer(torch.randn(1, 3, 32, 32)).rois.shape[0] == 5


@pytest.mark.parametrize("biased", [True, False], ids=["v1", "bootstrapped"])
@pytest.mark.parametrize("points", [5, 36])
def test_mixing_matches_its_definition(points: int, biased: bool) -> None:
    torch.manual_seed(0)
    mixing = AdaptiveMixing(width=16, channels=3, points=points, generator_width=4, eps=1e-5, biased=biased)
    for parameter in mixing.parameters():
        torch.nn.init.normal_(parameter)
    tokens, samples = torch.randn(1, 1, 16), torch.randn(1, 1, points, 3)

    rows = max(points, 32)
    parameters = mixing.generate(mixing.squeeze(mixing.norm(tokens)))[0, 0]
    m, s = parameters[:9].reshape(3, 3), parameters[9:].reshape(rows, points)
    mixed = torch.einsum("pi,io->po", samples[0, 0], m)
    if mixing.m_beta is not None and mixing.s_beta is not None:
        mixed = torch.einsum("op,pc->oc", s, F.gelu(mixed + mixing.m_beta)) + mixing.s_beta[:, None]
    else:
        mixed = torch.einsum("op,pc->oc", s, mixed)
    flat = torch.stack([F.gelu(mixed)[p, c] for p in range(rows) for c in range(3)])
    torch.testing.assert_close(mixing(tokens, samples)[0, 0], mixing.out_proj(flat), rtol=1e-4, atol=1e-4)
