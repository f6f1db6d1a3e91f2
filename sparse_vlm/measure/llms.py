"""Language models to measure: a named shape with random weights, or a directory or file with weights of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel

from sparse_vlm.errors import unknown_choice
from sparse_vlm.measure.shapes import SHAPES


@dataclass(frozen=True)
class LLM:
    """A causal language model.

    Attributes:
        name: name of the shape, or of the file or directory.
        weights: "random" or "its own"; the time is the same.
        config: transformers' configuration.
        parameters: number of parameters; tied ones count once.
        load: makes the model in evaluation mode, in the given dtype.
    """

    name: str
    weights: str
    config: PreTrainedConfig
    parameters: int
    load: Callable[[torch.dtype], Any]  # a PreTrainedModel; the annotations of its `to` are unusable

    def without_numbers(self, dtype: torch.dtype) -> PreTrainedModel:
        """Make the model on the meta device, to count operations of models of any size."""
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(self.config, dtype=dtype).eval()


def open_llm(name: str) -> LLM:
    """Open an LLM by the name of a shape, or from a directory, a .gguf file or the hub; see `load_llm`."""
    if name in SHAPES:
        config = LlamaConfig(**SHAPES[name])
        return _describe(name, "random", config, lambda dtype: AutoModelForCausalLM.from_config(config, dtype=dtype))
    if "/" not in name and not Path(name).exists():
        raise unknown_choice("LLM", name, SHAPES)
    from sparse_vlm.vlm.language.causal_lm import load_llm  # needs a later version of transformers than shapes do

    model: Any = load_llm(name)[0]
    return _describe(Path(name).name, "its own", model.config, lambda dtype: model.to(dtype))


def _describe(name: str, weights: str, config: PreTrainedConfig, load: Callable[[torch.dtype], PreTrainedModel]) -> LLM:
    with torch.device("meta"):
        counted = AutoModelForCausalLM.from_config(config).num_parameters()
    return LLM(name, weights, config, counted, lambda dtype: load(dtype).eval())
