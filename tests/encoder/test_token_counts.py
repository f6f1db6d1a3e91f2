"""Token counts: what people write, and how often each is drawn."""

import pytest

from sparse_vlm.encoder.token_counts import TokenCounts
from sparse_vlm.errors import UserError


@pytest.mark.parametrize(
    ("text", "counts"), [("16", (16,)), ("4-7", (4, 5, 6, 7)), ("25, 9,16", (9, 16, 25)), ("1,3-4", (1, 3, 4))]
)
def test_ways_to_write_counts(text: str, counts: tuple[int, ...]) -> None:
    parsed = TokenCounts.parse(text)
    assert parsed.counts == counts
    assert TokenCounts.parse(str(parsed)) == parsed
    assert counts[0] in parsed
    assert 100 not in parsed


@pytest.mark.parametrize("text", ["", "four", "4-", "-4", "4..8", "0", "0-4", "9-4", "4,,9", "1.5"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=f"got '{text}'"):
        TokenCounts.parse(text)


def test_few_tokens_are_drawn_more_often() -> None:
    counts = TokenCounts.parse("4-13")
    draws = [counts.draw((place + 0.5) / 10_000) for place in range(10_000)]
    shares = [draws.count(count) / 10_000 for count in counts.counts]
    assert shares == pytest.approx([0.19 - 0.02 * place for place in range(10)], abs=1e-3)
    assert {counts.draw(place / 10, "uniform") for place in range(10)} == set(counts.counts)
    with pytest.raises(UserError, match="Unknown density of token counts 'normal'"):
        counts.draw(0.5, "normal")
