"""A tiny random VLM whose answers differ between images and questions, and in length."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sparse_vlm.data import easy_vqa
from sparse_vlm.vlm.build import build_vlm
from tests.random_llama import random_llama

TEMPLATE = (
    "{% for message in messages %}{{ '<assistant>' if message['role'] == 'assistant' else '<user>' }}"
    "{{ message['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def build_worded_vlm(
    encoder_dir: Path, folder: Path, texts: Sequence[str] | None = None, template: str = TEMPLATE, width: int = 48
) -> Path:
    """Build a VLM in `folder` and return its directory.

    Args:
        encoder_dir: directory of the encoder.
        folder: an empty folder.
        texts: corpus of the tokenizer; None: questions of easy-VQA.
        template: chat template.
        width: hidden size of the random Llama.
    """
    tokenizer = worded_tokenizer(texts, template)
    tokenizer.save_pretrained(folder / "llm")
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    llama = random_llama(len(tokenizer), initializer_range=0.3, tie_word_embeddings=False, hidden_size=width, **ends)
    with torch.no_grad():  # so that about a third of the answers end before the limit
        llama.lm_head.weight[tokenizer.eos_token_id] *= 2.5
    llama.save_pretrained(folder / "llm")
    build_vlm(encoder_dir, folder / "llm", folder / "tiny-vlm", chat_template=template)
    return folder / "tiny-vlm"


def worded_tokenizer(texts: Sequence[str] | None = None, template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    """Train a tokenizer of 120 tokens on `texts`, or on questions of easy-VQA."""
    texts = texts or [question.text for question in easy_vqa.load_questions("train")[:2000]]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<end>", "<user>", "<assistant>"]
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", chat_template=template
    )
