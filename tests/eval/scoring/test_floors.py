"""Floors: the most frequent answer."""

from eval.scoring.floors import most_frequent


def test_most_frequent_breaks_ties_by_the_alphabet() -> None:
    assert most_frequent(["b", "a", "c", "b", "c"]) == "b"
    assert most_frequent(["c", "b"]) == "b"
