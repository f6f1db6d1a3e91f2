"""Start and end of turns, in prompts and in generation."""

import copy
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerBase

from sparse_vlm.data.conversations.encoding import IGNORE, encode
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.build import build_vlm
from sparse_vlm.vlm.chat import GREEDY, answer, encode_messages, encode_prompt, user_message
from sparse_vlm.vlm.loading import load_vlm
from sparse_vlm.vlm.processing import SparseVLMProcessor
from tests.random_llama import random_llama
from tests.vlm.language.known_templates import CHATML, GEMMA, TURNS, chat_format, sample


@pytest.mark.slow
def test_a_base_llm_stops_where_the_template_ends_its_turn(
    tokenizer: PreTrainedTokenizerBase, encoder_dir: Path, tmp_path: Path, images: list[Any]
) -> None:
    """The LLM's eos is <|endoftext|>, as for Qwen2.5's base models; the head below makes it generate <|im_end|>."""
    base: Any = copy.deepcopy(tokenizer)
    base.eos_token = base.pad_token = "<|endoftext|>"
    base.chat_template = CHATML
    llama: Any = random_llama(len(base), initializer_range=0.1, tie_word_embeddings=False, eos_token_id=0)
    llama.save_pretrained(tmp_path / "llm")
    base.save_pretrained(tmp_path / "llm")
    build_vlm(encoder_dir, tmp_path / "llm", tmp_path / "vlm")
    model: Any
    model, processor = load_vlm(tmp_path / "vlm")
    stop = base.convert_tokens_to_ids("<|im_end|>")
    assert model.generation_config.eos_token_id == [0, stop]
    inputs = processor(text="<image>\nWhat?", images=images[0], return_tensors="pt")
    first = int(model.generate(**inputs, max_new_tokens=1, **GREEDY)[0, -1])
    head = model.lm_head.weight.data
    head[[first, stop]] = head[[stop, first]]  # now the model generates <|im_end|> instead of its first token
    assert model.generate(**inputs, max_new_tokens=9, **GREEDY).shape[1] == inputs["input_ids"].shape[1] + 1


@pytest.mark.slow
def test_an_llm_without_eos_and_padding(encoder_dir: Path, tmp_path: Path, tokenizer: Any, images: list[Any]) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.eos_token = bare.pad_token = bare.bos_token = None
    bare.chat_template = CHATML
    llama = random_llama(len(bare), bos_token_id=None, eos_token_id=None, pad_token_id=None)
    llama.generation_config.eos_token_id = None
    llama.save_pretrained(tmp_path / "llm")
    bare.save_pretrained(tmp_path / "llm")
    build_vlm(encoder_dir, tmp_path / "llm", tmp_path / "vlm")
    model, processor = load_vlm(tmp_path / "vlm")
    assert (processor.tokenizer.eos_token, processor.tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    assert isinstance(answer(model, processor, images[0], "What?", max_new_tokens=2), str)


@pytest.mark.parametrize("template", [CHATML, GEMMA])
def test_bos_comes_from_the_template_only(
    tokenizer: PreTrainedTokenizerBase, template: str, vlm: Any, images: list[Any]
) -> None:
    """The tokenizer adds bos by default, as Llama's does; the template writes one or none."""
    adding: Any = copy.deepcopy(tokenizer)
    bos = adding.convert_tokens_to_ids(adding.bos_token)
    adding.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{adding.bos_token} $A", special_tokens=[(adding.bos_token, bos)]
    )
    assert adding("Why?")["input_ids"][0] == bos
    chat = chat_format(adding, template)
    processor = SparseVLMProcessor(vlm[1].image_processor, adding, 3, chat.chat_template)
    row = encode(sample(*TURNS[:2]), chat)
    prompt = row.input_ids[: next(i for i, target in enumerate(row.targets) if target != IGNORE) + 1]
    content = [{"type": "image", "image": images[0]}, {"type": "text", "text": "Is it red?"}]
    messages: Any = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    whole = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert prompt == whole["input_ids"][0]
    assert prompt == processor(text=text, images=images[:1])["input_ids"][0]
    assert prompt == encode_prompt(processor, images[0], "Is it red?")["input_ids"][0].tolist()
    assert prompt[:2].count(bos) == 1  # SmolLM2 opens a turn with the same token


def test_a_refusal_by_the_template_is_a_one_line_error(vlm: Any) -> None:
    processor = copy.copy(vlm[1])
    processor.chat_template = GEMMA
    messages = [{"role": "system", "content": "Be brief."}, user_message("What?", 0)]
    with pytest.raises(UserError, match="refuses the conversation: System role not supported"):
        encode_messages(processor, messages, [])
