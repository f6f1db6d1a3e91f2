"""Decoding: how the next token of an answer is chosen, and what ends an answer early."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria

from sparse_vlm.errors import UserError

# Every setting is named, since a model's own generation_config may hold values for sampling or beam search.
GREEDY: dict[str, Any] = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
# Settings of transformers' `generate` that depend on where the prompt ends or the answer must end.
FROM_PROMPT = (
    "min_new_tokens",
    "begin_suppress_tokens",
    "forced_eos_token_id",
    "exponential_decay_length_penalty",
    "encoder_repetition_penalty",
    "guidance_scale",
    "max_time",
)


@dataclass(frozen=True)
class Decoding:
    """Greedy decoding, sampling or beam search.

    Attributes:
        temperature: 0 decodes greedily, so that the same prompt gets the same answer; larger values sample.
        top_p: sample from the smallest set of most likely tokens with this total probability.
        beams: width of the beam search; 1 disables it.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    beams: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"--temperature must be 0 (greedy) or more, got {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top_p must be greater than 0 and at most 1, got {self.top_p}.")
        if self.beams < 1:
            raise UserError(f"--num_beams must be 1 or more, got {self.beams}.")
        if self.temperature and self.beams > 1:
            raise UserError("Choose either --temperature (sampling) or --num_beams (beam search), not both.")

    @property
    def settings(self) -> dict[str, Any]:
        """The keyword arguments of transformers' `generate`."""
        if self.temperature:
            sampling = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
            return GREEDY | sampling
        return GREEDY | {"num_beams": self.beams}


class EndWhen(StoppingCriteria):
    """Ends a generation after the token during which `ended()` became true."""

    def __init__(self, ended: Callable[[], bool]) -> None:
        self.ended = ended

    def __call__(self, input_ids: Tensor, scores: Tensor, **unused: Any) -> Any:  # transformers' signature
        return torch.full((len(input_ids),), self.ended(), device=input_ids.device)


def counts_from_prompt(config: GenerationConfig) -> bool:
    """Return whether a model's own settings forbid that `generate` continues an incomplete answer as a prompt."""
    return any(getattr(config, name, None) is not None for name in FROM_PROMPT)
