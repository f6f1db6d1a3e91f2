"""How the next token is chosen: greedily, by sampling, or by beam search."""

import math
from dataclasses import dataclass
from typing import Any

from sparse_vlm.errors import UserError

# A model's generation_config may hold sampling settings; greedy decoding must not warn about them.
GREEDY: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


@dataclass(frozen=True)
class Decoding:
    """How an answer is generated.

    Attributes:
        temperature: 0 is greedy, so that the same question gets the same answer; more samples.
        top_p: sample among the most likely tokens that have this probability together.
        beams: of beam search; 1 is none.

    Raises:
        UserError: a value is out of range, or both sampling and beam search are asked for.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    beams: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"--temperature must be 0 (greedy) or more, got {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top_p must be more than 0 and at most 1, got {self.top_p}.")
        if self.beams < 1:
            raise UserError(f"--num_beams must be 1 or more, got {self.beams}.")
        if self.temperature and self.beams > 1:
            raise UserError("Choose either --temperature (sampling) or --num_beams (beam search).")

    @property
    def settings(self) -> dict[str, Any]:
        """In the names of transformers' generate."""
        if self.temperature:
            return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return GREEDY if self.beams == 1 else {**GREEDY, "num_beams": self.beams}
