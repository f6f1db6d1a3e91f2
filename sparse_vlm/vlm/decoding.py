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
GREEDY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "temperature": None,
    "top_p": None,
    "top_k": None,
    "min_p": None,
}
# Sampling at this temperature chooses the most likely token anyway, and logits divided by far less overflow.
LOWEST_TEMPERATURE = 1e-5
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
        temperature: 0 decodes greedily, so that the same prompt gets the same answer; larger values sample. Values
            below 1e-5 decode greedily too, as in vLLM.
        top_p: sample from the smallest set of most likely tokens with this total probability.
        beams: width of the beam search; 1 disables it.
        top_k: sample from this number of most likely tokens; 0: from all.
        min_p: sample from the tokens that are at least this fraction as likely as the most likely one.
        repetition_penalty: divides the positive logits of all tokens that the prompt or the answer contains, and
            multiplies the negative ones; None: the model's own setting, which is usually 1.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    beams: int = 1
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"--temperature must be 0 (greedy) or more, got {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top_p must be greater than 0 and at most 1, got {self.top_p}.")
        if self.beams < 1:
            raise UserError(f"--num_beams must be 1 or more, got {self.beams}.")
        if self.temperature and self.beams > 1:
            raise UserError("Choose either --temperature (sampling) or --num_beams (beam search), not both.")
        if self.top_k < 0:
            raise UserError(f"top_k must be 0 (all tokens) or more, got {self.top_k}.")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min_p must be between 0 and 1, got {self.min_p}.")
        if self.repetition_penalty is not None and not 0 < self.repetition_penalty < math.inf:
            raise UserError(f"repetition_penalty must be greater than 0, got {self.repetition_penalty}.")

    @property
    def settings(self) -> dict[str, Any]:
        """The keyword arguments of transformers' `generate`."""
        settings = GREEDY | {"num_beams": self.beams}
        if self.temperature >= LOWEST_TEMPERATURE:
            settings |= {"do_sample": True, "temperature": self.temperature}
            settings |= {"top_p": self.top_p, "top_k": self.top_k, "min_p": self.min_p or None}
        if self.repetition_penalty is not None:
            settings["repetition_penalty"] = self.repetition_penalty
        return settings


class EndWhen(StoppingCriteria):
    """Ends a generation after the token during which `ended()` became true."""

    def __init__(self, ended: Callable[[], bool]) -> None:
        self.ended = ended

    def __call__(self, input_ids: Tensor, scores: Tensor, **unused: Any) -> Any:  # transformers' signature
        return torch.full((len(input_ids),), self.ended(), device=input_ids.device)


def counts_from_prompt(config: GenerationConfig) -> bool:
    """Return whether a model's own settings forbid that `generate` continues an incomplete answer as a prompt."""
    return any(getattr(config, name, None) is not None for name in FROM_PROMPT)
