"""Placeholders of samples, and bad records."""

from typing import Any

import pytest

from sparse_vlm.data.conversations.samples import parse_sample
from sparse_vlm.errors import UserError
from tests.data.conversations.records import record


def test_a_placeholder_is_moved_to_the_front() -> None:
    assert parse_sample(record("What is it?\n<image>", "A"), 0).turns[0] == ("user", "<image>\nWhat is it?")


def test_the_placeholder_of_a_later_turn_is_moved_to_its_front() -> None:
    sample = parse_sample(record("Q", "A", "And here?\n<image>", "B"), 0)
    assert [text for _, text in sample.turns] == ["Q", "A", "<image>\nAnd here?", "B"]


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (record("no placeholder", "A"), "Sample s1 has one image but 0 <image> in its text; it needs 1"),
        (record("<image><image>\nQ", "A"), "Sample s1 has one image but 2 <image>"),
        (record("<image>\nQ", "A", image=None), "Sample s1 has no image but 1 <image>"),
        (record("Q", "see <image>"), "must stand in a human turn"),
        (record("<image>\nQ", "A", image=["a", "b"]), "Sample s1 has 2 images but 1 <image>"),
        (record("<image>\nQ", "A", "B"), r"roles must be .* they are: human, gpt, human\."),
        (record("<image>\nQ", "A", conversations=[{"from": "gtp", "value": "x"}]), "'gtp'. Did you mean 'gpt'"),
        (record("<image>\nQ", ""), "gpt turn has no text"),
        (record("<image>\nQ", "A", image=["a", 3]), '"image" must be a relative path or a list of them'),
        ({"image": "a.png"}, 'Sample number 7 has no "conversations"'),
    ],
)
def test_bad_samples_are_named(bad: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse_sample(bad, 7)
