"""The language model inside a multimodal model becomes the language model of a VLM."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Gemma3Config,
    LlamaConfig,
    LlavaConfig,
    PreTrainedTokenizerBase,
)

from sparse_vlm.vlm.build import build_vlm
from sparse_vlm.vlm.chat import encode_prompt
from sparse_vlm.vlm.loading import load_vlm

SIZES = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "initializer_range": 0.1}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
QUESTIONS = ["What is it?", "Which colour has the thing that lies on the left of the big red cube?", "Is it red?"]
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION |= {"image_size": 28, "patch_size": 14}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gemma3", "llava"])
def test_the_text_part_of_a_multimodal_model(
    kind: str, encoder_dir: Path, short_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    sizes: dict[str, Any] = {"vocab_size": len(short_tokenizer), **SIZES, **HEADS, "head_dim": 12}
    torch.manual_seed(0)
    config: Any = (
        Gemma3Config(text_config=sizes | {"sliding_window": 12}, vision_config=VISION, mm_tokens_per_image=4)
        if kind == "gemma3"
        else LlavaConfig(text_config=LlamaConfig(**sizes), vision_config=CLIPVisionConfig(**VISION))
    )
    whole: Any = AutoModelForImageTextToText.from_config(config).eval()
    whole.save_pretrained(tmp_path / "llm")
    short_tokenizer.save_pretrained(tmp_path / "llm")
    build_vlm(encoder_dir, tmp_path / "llm", tmp_path / "vlm")
    model: Any
    model, processor = load_vlm(tmp_path / "vlm")
    text = encode_prompt(processor, None, QUESTIONS[1])
    with torch.no_grad():
        expected = whole(**text).logits
        torch.testing.assert_close(model(**text).logits[..., : expected.shape[-1]], expected)
