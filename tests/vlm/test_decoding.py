"""How the next token is chosen."""

from typing import Any

import pytest

from sparse_vlm.errors import UserError
from sparse_vlm.vlm.decoding import GREEDY, Decoding


@pytest.mark.parametrize("decoding", [Decoding(), Decoding(1e-6, 0.5), Decoding(top_k=3), Decoding(min_p=0.5)])
def test_greedy_decoding(decoding: Decoding) -> None:
    assert decoding.settings == GREEDY


def test_sampling() -> None:
    sampled = {"do_sample": True, "temperature": 0.5, "top_p": 1.0, "top_k": 0, "min_p": None}
    assert Decoding(0.5).settings == GREEDY | sampled
    assert Decoding(0.5, top_k=3, min_p=0.1).settings == GREEDY | sampled | {"top_k": 3, "min_p": 0.1}


def test_the_models_own_repetition_penalty_is_kept() -> None:
    assert "repetition_penalty" not in Decoding().settings
    assert Decoding(beams=3, repetition_penalty=1.2).settings == GREEDY | {"num_beams": 3, "repetition_penalty": 1.2}


@pytest.mark.parametrize("values", [{"top_k": -1}, {"min_p": 1.5}, {"min_p": float("nan")}, {"repetition_penalty": 0}])
def test_bad_values(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(values))):
        Decoding(**values)
