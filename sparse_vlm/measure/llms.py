"""Language models to measure: by the name of a shape, with random weights, or from a directory or file with its own."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel

from sparse_vlm.errors import unknown_choice

# Numbers of the published config.json files; all are Llamas.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {  # nobody's: to see that a measurement runs
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
    "smollm2-135m": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "tinyllama-1.1b": {
        "vocab_size": 32000,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
    "vicuna-7b": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
}


@dataclass(frozen=True)
class LLM:
    """A causal language model.

    Attributes:
        name: of the shape, or what the weights were opened as.
        weights: "random" or "its own"; the time is the same.
        config: its numbers.
        parameters: how many, tied ones once.
        load: makes it in eval mode, in the given dtype.
    """

    name: str
    weights: str
    config: PreTrainedConfig
    parameters: int
    load: Callable[[torch.dtype], Any]  # a PreTrainedModel, whose `to` has no usable types

    def without_numbers(self, dtype: torch.dtype) -> PreTrainedModel:
        """The same model on the meta device: to count, however large it is."""
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(self.config, dtype=dtype).eval()


def open_llm(name: str) -> LLM:
    """An LLM by the name of a shape, or a directory, a .gguf file or a name on the hub; see `load_llm`.

    Raises:
        UserError: nothing of that name.
    """
    if name in SHAPES:
        config = LlamaConfig(**SHAPES[name])
        return _describe(name, "random", config, lambda dtype: AutoModelForCausalLM.from_config(config, dtype=dtype))
    if "/" not in name and not Path(name).exists():
        raise unknown_choice("LLM", name, SHAPES)
    from sparse_vlm.vlm.language.causal_lm import load_llm  # wants a later transformers than a shape does

    model: Any = load_llm(name)[0]
    return _describe(Path(name).name, "its own", model.config, lambda dtype: model.to(dtype))


def _describe(name: str, weights: str, config: PreTrainedConfig, load: Callable[[torch.dtype], PreTrainedModel]) -> LLM:
    with torch.device("meta"):
        counted = AutoModelForCausalLM.from_config(config).num_parameters()
    return LLM(name, weights, config, counted, lambda dtype: load(dtype).eval())
