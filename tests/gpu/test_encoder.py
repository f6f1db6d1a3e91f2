"""The encoder on a GPU reproduces the outputs of the authors' library."""

import pytest
import torch

from tests.encoder.parity.official import CASES, LAYOUTS, NAMES, load_official, recorded, relative_errors, run


@pytest.mark.parametrize("name", NAMES)
def test_float32_matches_the_authors(name: str, device: torch.device) -> None:
    for layout in LAYOUTS[name]:
        encoder = load_official(name, layout).to(device)
        for case in CASES:
            assert max(relative_errors(encoder, name, case).values()) <= 1


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_close_to_the_authors(name: str, device: torch.device) -> None:
    """The bounds are twice the errors of a CPU."""
    encoder = load_official(name).to(device, torch.bfloat16)
    for case in CASES:
        expected = recorded(name, case)
        found = {key: value.float().cpu() for key, value in run(encoder, expected["input"].to(device)).items()}
        for key, bound in (("output", 0.02), ("tokens", 0.07), ("feat", 0.01)):
            assert (found[key] - expected[key]).norm() <= bound * expected[key].norm()
        assert (found["roi_step3"] - expected["roi_step3"]).abs().max() <= 0.01
