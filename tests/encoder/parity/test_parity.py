"""Parity with the authors' library, for every recorded quantity, case and checkpoint layout."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sparse_vlm.encoder import SparseFormer
from tests.encoder.parity.official import (
    CASES,
    LAYOUTS,
    NAMES,
    load_official,
    official_config,
    relative_errors,
    weights_file,
)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("name", "layout"), [(name, layout) for name in NAMES for layout in LAYOUTS[name]])
def test_every_recorded_quantity_agrees(name: str, layout: str, case: str) -> None:
    errors = relative_errors(load_official(name, layout), name, case)
    assert {"output", "tokens", "tokens_normed", "feat", "unit0.embedding", "unit1.roi", "roi_step3"} <= errors.keys()
    assert {key: error for key, error in errors.items() if error > 1} == {}


@pytest.mark.parametrize("wrapped", [True, False], ids=["under-model", "bare"])
@pytest.mark.parametrize("name", NAMES)
def test_pth_files_give_the_same_weights(name: str, wrapped: bool, tmp_path: Path) -> None:
    weights = load_file(weights_file(name))
    torch.save({"model": weights} if wrapped else weights, tmp_path / "official.pth")
    ours = SparseFormer.from_released(tmp_path / "official.pth", official_config(name)).state_dict()
    expected = load_official(name).state_dict()
    assert all(torch.equal(value, ours[key]) for key, value in expected.items())


@pytest.mark.parametrize("name", NAMES)
def test_layouts_give_the_same_weights(name: str) -> None:
    new, old = (load_official(name, layout).state_dict() for layout in LAYOUTS[name])
    for key, value in new.items():
        # corners and centre/size of the RoIs differ by the rounding of the conversion
        torch.testing.assert_close(old[key], value, rtol=0, atol=1e-6 if key == "focus.initial_rois.weight" else 0)
