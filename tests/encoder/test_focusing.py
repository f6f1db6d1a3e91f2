"""The focusing transformer: which RoIs it reports, and how its repetitions share weights."""

import pytest
import torch

from sparse_vlm.encoder import SparseFormer
from tests.encoder.parity.official import load_official, recorded


@pytest.mark.parametrize(("name", "adjustments"), [("v1_tiny", 3 + 1), ("btsp_clip_tiny", 4)])
@torch.no_grad()
def test_one_set_of_rois_per_adjustment(name: str, adjustments: int) -> None:
    encoder = load_official(name)
    images = recorded(name, "a")["input"]
    rois = encoder(images).rois
    assert rois.shape == (adjustments, 2, encoder.config.focus.tokens, 4)
    seen = []
    encoder.focus.last_unit.glance.points.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    encoder(images)
    assert torch.equal(seen[0], rois[-1])  # the last RoIs are where the tokens looked last


@torch.no_grad()
def test_rois_differ_between_images_and_steps() -> None:
    rois = load_official("btsp_clip_tiny")(recorded("btsp_clip_tiny", "a")["input"]).rois
    assert (rois[:, 0] != rois[:, 1]).any(dim=-1).all()
    assert (rois[1:] != rois[:-1]).any(dim=-1).all()


def test_the_bootstrapped_model_shares_one_initial_embedding() -> None:
    assert load_official("btsp_clip_tiny").focus.initial_embedding.shape == (1, 64)
    assert load_official("v1_tiny").focus.initial_embedding.shape == (7, 64)


@torch.no_grad()
def test_more_repeats_need_no_more_than_stage_embeddings(tiny_encoder: SparseFormer) -> None:
    values = tiny_encoder.config.to_dict()
    longer = SparseFormer(type(tiny_encoder.config).from_dict(values | {"focus": values["focus"] | {"repeats": 5}}))
    assert longer.num_parameters - tiny_encoder.num_parameters == (5 - 2) * 64
    assert longer(torch.randn(1, 3, 32, 32)).rois.shape[0] == 5
