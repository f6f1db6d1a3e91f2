"""The causal LM inside a multimodal model, such as Gemma3ForConditionalGeneration."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from sparse_vlm.errors import UserError


def text_part(model: PreTrainedModel) -> PreTrainedModel:
    """Return the causal LM of a multimodal model's text part, with its weights; a causal LM is returned itself.

    Raises:
        UserError: transformers has no causal LM of that kind, or its logits differ from the model's.
    """
    config: Any = model.config.get_text_config(decoder=True)
    if config is model.config:
        return model
    name, whole = type(model).__name__, model
    try:
        text: Any = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
        text.base_model.load_state_dict(whole.get_decoder().state_dict())
        text.get_output_embeddings().load_state_dict(whole.get_output_embeddings().state_dict())
    except (AttributeError, KeyError, RuntimeError, ValueError) as error:
        raise UserError(f"A {name} is multimodal, and its text part cannot be used alone.") from error
    text.tie_weights()
    text.generation_config = whole.generation_config
    ids = torch.arange(1, 9, device=model.device)[None]
    with torch.no_grad():
        difference = (text.eval()(input_ids=ids).logits - whole.eval()(input_ids=ids).logits).abs().max()
    if not difference < 1e-3:
        raise UserError(f"The text part of a {name} computes other logits than the model; they differ by {difference}.")
    return text
