"""The figure of accuracy against visual tokens."""

import json
from pathlib import Path
from typing import Any

import pytest

from eval.figure import main, token_figure
from sparse_vlm.errors import UserError


def report(**changes: Any) -> dict[str, Any]:
    rows = [
        {"method": "LLaVA-1.5", "tokens": 576, "value": 62.0, "source": "x"},
        {"method": "none", "tokens": 0, "value": 37.7, "source": "y"},
    ]
    published = {"column": "GQA", "note": "testdev", "ours": 58.5, "rows": rows}
    return {
        "benchmark": "gqa", "model_id": "ours", "image": True, "visual_tokens": 49, "published": published
    } | changes  # fmt: skip


def test_our_score_is_drawn_among_the_published_ones(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(report()))
    (tmp_path / "b.json").write_text(json.dumps(report(image=False, visual_tokens=0)))
    output = tmp_path / "figure.svg"
    assert main([str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--output", str(output)]) == 0
    assert output.stat().st_size > 1000
    (axes,) = token_figure([report()]).axes
    points = {tuple(line.get_xydata()[0]) for line in axes.lines if len(line.get_xydata()) == 1}
    assert points == {(576, 62.0), (49, 58.5)}
    assert {text.get_text() for text in axes.texts} == {"LLaVA-1.5", "ours"}


def test_a_panel_for_each_benchmark() -> None:
    other = report(published=report()["published"] | {"column": "POPE"})
    assert len(token_figure([report(), other, report()]).axes) == 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"published": None}, "no published scores beside this report of 'gqa'"),
        ({"visual_tokens": None}, "how many visual"),
    ],
)
def test_reports_that_cannot_be_drawn(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        token_figure([report(**changes)])
