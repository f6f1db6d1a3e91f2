"""Numbers of latent tokens that an encoder is trained with: one, a range, or a list."""

import math
import re
from dataclasses import dataclass
from typing import Self

from sparse_vlm.errors import UserError, unknown_choice

DENSITIES = ("linear", "uniform")
PATTERN = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


@dataclass(frozen=True)
class TokenCounts:
    """Set of token counts.

    Attributes:
        counts: in ascending order, without repetition.
        text: their notation, e.g. "4-64" or "9,16,25".
    """

    counts: tuple[int, ...]
    text: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "16", "4-64", "9,16,25" or a mixture of these.

        Raises:
            UserError: something else, a count of 0, or a range that ends before it begins.
        """
        if not PATTERN.fullmatch(text.replace(" ", "")):
            raise UserError(f"Token counts are written 16, 4-64 or 9,16,25, got {text!r}.")
        counts: set[int] = set()
        for piece in text.replace(" ", "").split(","):
            low, _, high = piece.partition("-")
            first, last = int(low), int(high or low)
            if not 1 <= first <= last:
                raise UserError(f"Token counts start at 1 and rise, got {piece!r} in {text!r}.")
            counts |= set(range(first, last + 1))
        return cls(tuple(sorted(counts)), text.replace(" ", ""))

    @classmethod
    def of_option(cls, text: str | None) -> tuple[int, ...]:
        """Read the value of an option, see `parse`; none without the option."""
        return () if text is None else cls.parse(text).counts

    def __contains__(self, count: int) -> bool:
        return count in self.counts

    def __str__(self) -> str:
        return self.text

    def draw(self, uniform: float, density: str = "linear") -> int:
        """Draw one of the counts.

        Args:
            uniform: a random number in [0, 1).
            density: "linear": probabilities fall linearly to zero after the largest count, p(x) = 2 − 2x over the
                order of the counts, which RADIO1D (arXiv 2607.03624) found better than uniform; "uniform": all equal.

        Raises:
            UserError: another density.
        """
        if density not in DENSITIES:
            raise unknown_choice("density of token counts", density, DENSITIES)
        place = 1 - math.sqrt(1 - uniform) if density == "linear" else uniform
        return self.counts[int(place * len(self.counts))]
