"""Values out of range are refused before anything is opened."""

import pytest

from sparse_vlm.errors import UserError
from train.vision.finetune_arguments import FinetuneArguments


@pytest.mark.parametrize(
    ("name", "value", "interval"),
    [
        ("layer_decay", 0.0, "(0, 1]"),
        ("drop_path", 1.0, "[0, 1)"),
        ("drop", -0.1, "[0, 1)"),
        ("smoothing", 1.0, "[0, 1)"),
        ("min_crop_area", 0.0, "(0, 1]"),
        ("rand_augment_ops", -1, "[0, inf)"),
        ("rand_augment_magnitude", 31, "[0, 30]"),
        ("reprob", 2.0, "[0, 1]"),
        ("mixup", -1.0, "[0, inf)"),
        ("cutmix", -1.0, "[0, inf)"),
    ],
)
def test_ranges(name: str, value: float, interval: str) -> None:
    with pytest.raises(UserError) as caught:
        FinetuneArguments("encoder", "images", **{name: value})  # type: ignore[arg-type]
    assert str(caught.value) == f"--{name} must lie in {interval}, got {value:g}."


def test_closed_ranges_include_their_ends() -> None:
    FinetuneArguments("encoder", "images", layer_decay=1.0, drop_path=0.0, rand_augment_magnitude=30, reprob=1.0)
