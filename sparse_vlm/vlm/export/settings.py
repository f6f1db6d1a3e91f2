"""export.json: what a program that runs an exported VLM must know about it."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from sparse_vlm.errors import UserError
from sparse_vlm.vlm.chat import user_message
from sparse_vlm.vlm.export.modules import CacheShape
from sparse_vlm.vlm.language.control_tokens import control_tokens
from sparse_vlm.vlm.language.positions import most_positions
from sparse_vlm.vlm.language.turns import QUESTION, template_refusals
from sparse_vlm.vlm.processing import SparseVLMProcessor

SETTINGS = "export.json"
# Names of Optimum's and transformers.js' exports.
VISION, EMBEDDING, DECODER = "vision_encoder.onnx", "embed_tokens.onnx", "decoder_model_merged.onnx"


def export_settings(
    model: Any, processor: SparseVLMProcessor, layers: Sequence[CacheShape], initial_rois: Tensor | None
) -> dict[str, Any]:
    """Return the contents of export.json.

    Args:
        model: `SparseVLMForConditionalGeneration`.
        processor: its processor; `num_image_tokens` is that of the export.
        layers: see `cache_shapes`.
        initial_rois: the default of the vision encoder's input of this name, float32[n, 4]; None if it has none.

    Returns:
        files: names of the ONNX files, visual_tokens: tokens of an image by default, initial_rois: as given,
        image_token: text and id of the placeholder, eos_token_ids: tokens that end an answer,
        control_tokens: texts that a question must not contain, unless they are tokenized as letters,
        positions: most tokens of prompt and answer, or null,
        layers: shapes of the cache, preprocessing and aspect: see `sparse_vlm.encoder.preprocessing`,
        prompts: [text before the question, text after it] without and with an image.
    """
    ends = model.generation_config.eos_token_id
    image_processor: Any = processor.image_processor
    return {
        "files": {"vision": VISION, "embedding": EMBEDDING, "decoder": DECODER},
        "visual_tokens": processor.num_image_tokens,
        "initial_rois": None if initial_rois is None else initial_rois.tolist(),
        "image_token": {"text": processor.image_token, "id": processor.image_token_id},
        "eos_token_ids": [ends] if isinstance(ends, int) else list(ends or ()),
        "control_tokens": list(control_tokens(processor.tokenizer)),
        "positions": most_positions(model.config.get_text_config()),
        "layers": [layer._asdict() for layer in layers],
        "preprocessing": asdict(image_processor.preprocessing()),
        "aspect": image_processor.aspect,
        "prompts": [_around_question(processor, images) for images in (0, 1)],
    }


def _around_question(processor: SparseVLMProcessor, images: int) -> list[str]:
    """Return what the chat template writes before and after a question."""
    with template_refusals():
        text: Any = processor.apply_chat_template(
            [user_message(QUESTION, images)], add_generation_prompt=True, tokenize=False
        )
    parts = text.split(QUESTION)
    if len(parts) != 2:
        raise UserError(f"The chat template prints a question {len(parts) - 1} times; an export needs it once.")
    return parts
