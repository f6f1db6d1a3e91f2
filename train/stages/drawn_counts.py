"""The number of tokens of each training step, where a model is trained for several numbers of tokens."""

from dataclasses import dataclass
from random import Random

from sparse_vlm.data.images.seeded import seed_of
from sparse_vlm.encoder.token_counts import TokenCounts


@dataclass(frozen=True)
class DrawnCounts:
    """Token counts drawn at random, one per step.

    The count depends only on the seed and the step. All processes therefore draw the same one, and a resumed run draws
    the same counts as an uninterrupted run.

    Attributes:
        counts: the counts to draw from.
        density: see `TokenCounts.draw`.
        seed: seed of the run.
    """

    counts: TokenCounts
    density: str
    seed: int

    def at(self, step: int) -> int | None:
        """Return the count of a step; None if there is a single count, which is then the model's own."""
        return None if len(self.counts.counts) == 1 else self.count_at(step)

    def count_at(self, step: int) -> int:
        """Return the count of a step, which is the only one if there is one."""
        return self.counts.draw(Random(seed_of("tokens", self.seed, step)).random(), self.density)
