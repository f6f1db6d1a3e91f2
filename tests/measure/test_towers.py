"""Towers by name: counts compared with published ones, and errors for impossible towers."""

from pathlib import Path

import pytest
import torch

from eval.cost.encoders import SETS
from sparse_vlm.encoder import SparseFormer, SparseFormerConfig
from sparse_vlm.encoder.rois import lay_out_rois
from sparse_vlm.encoder.variants import VARIANTS
from sparse_vlm.errors import UserError
from sparse_vlm.measure.timing import gmacs_of
from sparse_vlm.measure.towers import build_towers, open_tower, open_towers

# 1e9 multiply-accumulates, and tokens. ViTs: the usual figures. SparseFormer: the authors'; ours are up to 1.5 % lower,
# because results that all tokens share are computed once, and sampling is not counted.
PUBLISHED = {
    "timm:vit_base_patch16_clip_quickgelu_224@224": (17.6, 196),
    "timm:vit_large_patch14_clip_quickgelu_224@224": (81.0, 256),
    "timm:vit_large_patch14_clip_quickgelu_336@336": (191.0, 576),
    "timm:vit_so400m_patch14_siglip_384@384": (335.4, 729),
    "sparseformer-clip-b@224": (3.79, 48),
    "sparseformer-clip-l@224": (14.84, 63),
    "sparseformer-clip-l@336": (14.84 + 0.15, 63),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({name for names in SETS.values() for name in names}))
def test_gmacs_and_tokens_are_as_published(name: str) -> None:
    tower = open_tower(name)
    gmacs, tokens = PUBLISHED[str(tower)]
    assert (0.985 if tower.sparse else 0.995) * gmacs < tower.gmacs < 1.005 * gmacs
    assert tower.tokens == tokens
    assert tower.sparse == name.startswith("sparseformer")


@pytest.mark.slow
def test_timm_and_open_clip_have_the_same_shape() -> None:
    ours, theirs = open_tower("timm:vit_base_patch32_clip_quickgelu_224"), open_tower("open_clip:ViT-B-32-quickgelu")
    assert (theirs.tokens, theirs.width) == (ours.tokens, ours.width) == (49, 768)
    assert theirs.parameters == ours.parameters - 512, "timm's projection has a bias, of zeros with CLIP's weights"
    assert theirs.gmacs == pytest.approx(ours.gmacs, rel=1e-3)


@pytest.mark.slow
def test_the_size_in_a_name_takes_precedence() -> None:
    assert str(open_tower("timm:vit_tiny_patch16_224", 64)) == "timm:vit_tiny_patch16_224@64"
    tower = open_tower("timm:vit_tiny_patch16_224@32", 64)
    assert (tower.image_size, tower.tokens) == (32, 4)
    assert tower.build()(torch.zeros(1, 3, 32, 32)).shape == (1, 1000), "built as counted"


@pytest.mark.parametrize("count", [1, 4, 25])
def test_another_number_of_tokens_costs_what_the_encoder_does_with_it(
    tiny_config: SparseFormerConfig, count: int
) -> None:
    """The meta count of the tower is the count of a real encoder that is asked for the number."""
    encoder = SparseFormer(tiny_config)
    image = torch.zeros(1, 3, 64, 64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, "tiny", tiny_config)
        tower = open_tower("tiny", tokens=count)
    assert tower.gmacs == gmacs_of(lambda: encoder(image, tokens=count))
    assert (tower.tokens, str(tower)) == (count, f"tiny@64, {count} tokens")


@pytest.mark.slow
def test_gmacs_by_the_number_of_tokens_are_those_of_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs/efficiency.md").read_text()
    table = page.partition("| latent tokens |")[2].partition("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip(" |").split("|")] for line in table]
    for name, *cells in rows[2:]:
        variant, pixels = name.removesuffix(" px").split(", ")
        counted = [f"{open_tower(variant, int(pixels), int(count)).gmacs:.2f}" for count in rows[0]]
        assert cells == counted


def test_towers_of_one_encoder_share_their_weights(encoder_dir: Path) -> None:
    towers = open_towers([str(encoder_dir), "timm:vit_tiny_patch16_224@32"], [64, 96], tokens=[4, 9])
    assert [(tower.image_size, tower.tokens) for tower in towers] == [(64, 4), (64, 9), (96, 4), (96, 9), (32, 4)]
    *ours, dense = build_towers(towers, torch.device("cpu"), torch.bfloat16)
    places = [{name: weight.data_ptr() for name, weight in model.named_parameters()} for model in ours]
    for model, place in zip(ours, places, strict=True):
        assert {name for name in place if place[name] != places[0][name]} <= {"focus.initial_rois.weight"}
        assert not model.training
    images = torch.randn(1, 3, 64, 64)
    for tower, model in zip(towers, ours, strict=False):
        assert model(images).tokens.shape == (1, 1 + tower.tokens, 128)
        assert torch.equal(model(images).tokens, ours[0](images, rois=lay_out_rois(tower.tokens)).tokens)
    assert dense(torch.zeros(1, 3, 32, 32, dtype=torch.bfloat16)).shape == (1, 1000)


def test_a_directory_may_contain_any_character(tiny_config: SparseFormerConfig, tmp_path: Path) -> None:
    directory = tmp_path / "a:b@c"
    SparseFormer(tiny_config).save_pretrained(directory)
    assert open_tower(str(directory)).sparse
    assert open_tower(f"{directory}@32").image_size == 32


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("sparseformer-clip-x", "Unknown encoder variant 'sparseformer-clip-x'"),
        ("timm:vit_huge_x", "Unknown timm model 'vit_huge_x'"),
        ("timm:resnet18", "timm:resnet18 is a ResNet: only VisionTransformers"),
        ("open_clip:ViT-X", "Unknown open_clip model 'ViT-X'"),
        ("torch:x", "Unknown library of a vision tower 'torch'"),
        ("sparseformer-clip-b@", "is not a whole number"),
        ("sparseformer-clip-b@big", "is not a whole number"),
        ("sparseformer-clip-b@0", "cannot have images of 0 pixels"),
        ("timm:vit_tiny_patch16_224@8", "cannot have images of 8 pixels"),
    ],
)
def test_unknown_towers_and_sizes_are_refused(name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        open_tower(name)
