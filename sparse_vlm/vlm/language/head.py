"""The output layer of the language model inside a VLM."""

from typing import Any

import torch
from torch import Tensor, nn

from sparse_vlm.vlm.configuration import SparseVLMConfig


class LanguageHead(nn.Linear):
    """Hidden states float[..., D] -> logits float[..., vocabulary], as the causal LM computes them.

    Llava's own head is a matrix only, but Phi's has a bias, and Gemma 2 caps its logits (`final_logit_softcapping`).
    """

    def __init__(self, config: SparseVLMConfig) -> None:
        text: Any = config.text_config
        super().__init__(text.hidden_size, text.vocab_size, bias=config.language_head_bias)
        self.softcap: float | None = getattr(text, "final_logit_softcapping", None)

    def forward(self, input: Tensor) -> Tensor:
        logits = super().forward(input)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)
