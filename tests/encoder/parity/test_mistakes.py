"""Mistakes that a reader of the architecture could make: the comparison with the authors' outputs detects each of them.

Two kinds of mistake stay below the tolerances on these tiny models and are caught elsewhere: a wrong LayerNorm eps
(test_variants.py asserts every one) and, in the bootstrapped models, a misplaced eps of the points' spread
(tests/encoder/test_rois.py; v1's numbers catch it here). v1 adjusts its RoIs, with |size|, before it samples, so the
sign of the size in the sampling matters in the bootstrapped models only.
"""

import pytest

from sparse_vlm.encoder import focusing
from tests.encoder.parity import cortex_mistakes, mixing_mistakes, rois_mistakes, stem_mistakes, units_mistakes
from tests.encoder.parity.mistakes import V1, Mistake, Patch, Rows
from tests.encoder.parity.official import load_official, relative_errors

MISTAKES: dict[str, Rows] = {
    "stem": stem_mistakes.STEM,
    "RoIs": rois_mistakes.GEOMETRY,
    "encoding": rois_mistakes.ENCODING,
    "mixing": mixing_mistakes.MIXING,
    "unit": units_mistakes.UNITS,
    "cortex": cortex_mistakes.CORTEX,
}
FAITHFUL: dict[str, Rows] = {
    subject.__name__.rpartition(".")[2].removesuffix("_mistakes"): subject.FAITHFUL
    for subject in (stem_mistakes, rois_mistakes, mixing_mistakes, units_mistakes)
}


def each(tables: dict[str, Rows]) -> pytest.MarkDecorator:
    """Parametrize a test with `name`, an official model, and `change`, for each row of the tables."""
    cases = [
        pytest.param(name, change, id=f"{part}: {what} ({name.split('_')[-2 if name != V1 else 0]})")
        for part, rows in tables.items()
        for what, (names, change) in rows.items()
        for name in names
    ]
    return pytest.mark.parametrize(("name", "change"), cases)


def greatest_error(name: str, change: Mistake, patch: Patch) -> float:
    """Greatest error of an official model with a change, in units of its tolerance: ≤ 1 is parity."""
    encoder = load_official(name)
    change(patch, encoder)
    return max(relative_errors(encoder, name, "a").values())


@each(MISTAKES)
def test_parity_fails_with_the_mistake(name: str, change: Mistake, monkeypatch: Patch) -> None:
    assert greatest_error(name, change, monkeypatch) > 1


@each(FAITHFUL)
def test_parity_holds_without_a_mistake(name: str, change: Mistake, monkeypatch: Patch) -> None:
    assert greatest_error(name, change, monkeypatch) <= 1


def test_functions_are_replaced_where_they_are_looked_up() -> None:
    assert {"place_points", "adjust_rois", "sample_features", "encode_rois"} <= vars(focusing).keys()
