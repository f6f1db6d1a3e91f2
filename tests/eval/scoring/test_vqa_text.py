"""The official scorers' simplified forms of answers."""

import pytest

from eval.scoring.vqa_text import CONTRACTIONS, simplify, simplify_evalai


@pytest.mark.parametrize(
    ("answer", "simple"),
    [
        ("The Dogs.", "dogs"),
        ("dont", "don't"),
        ("shouldntve", "shouldntve"),
        ("shouldn'tve", "shouldn't've"),
        ("somebody'd", "somebodyd"),
        ("Ten past two", "10 past 2"),
        ("none", "0"),
        ("t-shirt", "t shirt"),
        ("t - shirt", "t shirt"),
        ("1,000", "1000"),
        ("1,000 a-b", "1000 ab"),
        ("red, blue", "red blue"),
        ("red,blue", "red blue"),
        ("3.5 m.", "3.5 m"),
        (".5", ".5"),
        ("a.b", "ab"),
        ("." * 40 + "x", "." * 8 + "x"),
        ("what's up: x", "what's up: x"),
    ],
)
def test_simplified_as_the_vqa_challenge_does(answer: str, simple: str) -> None:
    assert simplify(answer) == simple


def test_evalais_additional_rules() -> None:
    assert simplify_evalai("The dog's,  house?") == "dog 's house"
    assert simplify("The dog's,  house?") == "dog's house"
    assert simplify_evalai("new\nyork") == "new york"


def test_the_contractions_are_the_official_ones() -> None:
    """The official table has 120 lines; two change nothing, and four have capitals, which never occur in a lookup."""
    assert len(CONTRACTIONS) == 114
    assert CONTRACTIONS["couldn'tve"] == CONTRACTIONS["couldnt've"] == "couldn't've"
    assert {key for key, value in CONTRACTIONS.items() if value == "'ow's'at"} == {"ow's'at", "'ows'at", "'ow'sat"}
    assert "lets" not in CONTRACTIONS
    assert "shes" not in CONTRACTIONS
