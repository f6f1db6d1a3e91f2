"""The paths of the study's results."""

from dataclasses import dataclass
from pathlib import Path

STUDENT, DENSE = "student", "dense"


@dataclass(frozen=True)
class Paths:
    """The paths below the root of a run. The two sides are `STUDENT` and `DENSE`."""

    root: Path

    @property
    def data(self) -> Path:
        """The output of `train.studies.photographs.data`, for all splits."""
        return self.root / "data"

    @property
    def reading(self) -> Path:
        """The student's model whose LLM has read questions in words; the LLM of both sides."""
        return self.root / STUDENT / "reading"

    def built(self, side: str) -> Path:
        """The untrained model of a side."""
        return self.root / side / "built"

    def aligned(self, side: str) -> Path:
        """The model of a side after the alignment."""
        return self.root / side / "aligned"

    def model(self, side: str, rate: float) -> Path:
        """The model of a side after the instruction tuning at a learning rate."""
        return self.root / side / f"model_{rate:g}"

    def answers(self, side: str, rate: float, questions: str, count: int | None) -> Path:
        """A model's answers.

        Args:
            side, rate: see `model`.
            questions: "validation", "test" or "blank": the test questions about grey images.
            count: number of visual tokens; None: the model's own.
        """
        name = questions if count is None else f"{questions}_{count}_tokens"
        return self.root / side / f"answers_{rate:g}" / f"{name}.jsonl"

    def scores(self, side: str, rate: float, questions: str, count: int | None) -> Path:
        """The scores of `answers`."""
        return self.answers(side, rate, questions, count).with_suffix(".json")

    @property
    def cache(self) -> Path:
        """The visual tokens of both frozen towers."""
        return self.root / "visual_tokens"

    @property
    def choice(self) -> Path:
        """The learning rate of each side, chosen on the validation questions."""
        return self.root / "choice.json"

    @property
    def probe(self) -> Path:
        """The linear probe of teacher and student."""
        return self.root / "probe.json"
