"""Configurations are checked at construction, and survive a JSON round trip."""

import dataclasses
import json

import pytest

from sparse_vlm.encoder import CortexConfig, FocusConfig, Preprocessing, SparseFormerConfig, StemConfig
from sparse_vlm.encoder.variants import VARIANTS
from sparse_vlm.errors import UserError

FOCUS = {"generation": "bootstrapped", "tokens": 4, "width": 64, "heads": 1}
CORTEX = {"architecture": "vit_base_patch16_224", "depth": 2, "width": 64, "heads": 1}


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_json_round_trip(config: SparseFormerConfig) -> None:
    assert SparseFormerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("part", "values", "sentence"),
    [
        (StemConfig, {"channels": 0}, "stem.channels must be positive, got 0"),
        (FocusConfig, FOCUS | {"generation": "v2"}, "Unknown focus.generation 'v2'"),
        (FocusConfig, FOCUS | {"tokens": 0}, "focus.tokens must be positive, got 0"),
        (FocusConfig, FOCUS | {"points": 1}, "focus.points must be at least 2"),
        (FocusConfig, FOCUS | {"width": 60}, "focus.width must be a multiple of 8"),
        (FocusConfig, FOCUS | {"heads": 7}, "focus.width 64 is not divisible by focus.heads 7"),
        (FocusConfig, FOCUS | {"last_heads": 2}, "focus.last_heads is 2"),
        (FocusConfig, FOCUS | {"generation": "v1"}, "focus.last_heads is 0"),
        (CortexConfig, CORTEX | {"depth": 0}, "cortex.depth must be positive, got 0"),
        (CortexConfig, CORTEX | {"head_dim": -1}, "cortex.head_dim must not be negative, got -1"),
        (CortexConfig, CORTEX | {"heads": 3}, "cortex.width 64 is not divisible by cortex.heads 3"),
        (Preprocessing, {"crop": 300}, "preprocessing.crop must lie in"),
        (Preprocessing, {"std": (0.5, 0.5, 0)}, "preprocessing.std must be positive"),
        (Preprocessing, {"interpolation": "cubic"}, "Did you mean 'bicubic'"),
        (Preprocessing, {"resize_mode": "squish"}, "Unknown resize mode 'squish'. Did you mean 'squash'"),
    ],
)
def test_impossible_numbers_are_refused(part: type, values: dict, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        part(**values)
    assert sentence in str(caught.value)


def test_unknown_and_missing_fields_are_named() -> None:
    values = {"stem": {}, "focus": FOCUS, "cortex": CORTEX}
    with pytest.raises(UserError, match=r"'focus\.token'\. Did you mean 'focus\.tokens'"):
        SparseFormerConfig.from_dict(values | {"focus": FOCUS | {"token": 4}})
    with pytest.raises(UserError, match=r"'cortexx'. Did you mean 'cortex'"):
        SparseFormerConfig.from_dict(values | {"cortexx": CORTEX})
    with pytest.raises(UserError, match=r"incomplete.*'architecture'"):
        SparseFormerConfig.from_dict(values | {"cortex": {"depth": 1, "width": 8, "heads": 1}})
    with pytest.raises(UserError, match=r"incomplete.*'focus'"):
        SparseFormerConfig.from_dict({"stem": {}, "cortex": CORTEX})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stem": 3}, "stem must be a JSON object, got 3"),
        ({"focus": FOCUS | {"tokens": 16.5}}, r"focus\.tokens has the wrong type or length: 16\.5"),
        ({"focus": FOCUS | {"tokens": "16"}}, r"focus\.tokens has the wrong type or length: '16'"),
        ({"focus": FOCUS | {"tokens": True}}, r"focus\.tokens has the wrong type"),
        ({"preprocessing": {"mean": [0.5]}}, r"preprocessing\.mean has the wrong type or length: \[0\.5\]"),
        ({"cortex": CORTEX | {"norm_eps": "1"}}, r"cortex\.norm_eps has the wrong type"),
        ({"teacher": None}, "teacher has the wrong type"),
    ],
)
def test_wrong_types_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SparseFormerConfig.from_dict({"stem": {}, "focus": FOCUS, "cortex": CORTEX} | changes)
    with pytest.raises(UserError, match="must be a JSON object, got None"):
        SparseFormerConfig.from_dict(None)  # type: ignore[arg-type]


def test_configurations_cannot_be_changed(tiny_config: SparseFormerConfig) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny_config.focus.tokens = 7  # type: ignore[misc]
