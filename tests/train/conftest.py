"""A tiny real VLM and a tiny data set in LLaVA's format, for the stages."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase
from transformers.integrations import HfDeepSpeedConfig
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from sparse_vlm.encoder import SparseFormer, SparseFormerConfig
from sparse_vlm.vlm.build import build_vlm

COLOURS = ("red", "green", "blue", "yellow", "black", "white")


@pytest.fixture(scope="session")
def vlm_dir(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_config: SparseFormerConfig,
    smollm2_tokenizer: PreTrainedTokenizerBase,
) -> Path:
    """A directory of `build_vlm` with a random Llama of width 48 behind SmolLM2's tokenizer."""
    folder = tmp_path_factory.mktemp("vlm")
    torch.manual_seed(0)
    SparseFormer(tiny_config).save_pretrained(folder / "encoder")
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "tie_word_embeddings": True}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=len(smollm2_tokenizer), **sizes, **heads, **ends))
    llama.save_pretrained(folder / "llm")
    smollm2_tokenizer.save_pretrained(folder / "llm")
    build_vlm(folder / "encoder", folder / "llm", folder / "vlm", seed=0)
    return folder / "vlm"


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six one-coloured images; captions.json (one turn each), text.json (no images), chats.json (both, two turns)."""
    folder = tmp_path_factory.mktemp("data")
    captions, chats, text = [], [], []
    for colour in COLOURS:
        Image.new("RGB", (20, 12), colour).save(folder / f"{colour}.png")

        def turns(*texts: str) -> list[dict[str, str]]:
            return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(texts)]

        image = {"id": colour, "image": f"{colour}.png"}
        captions.append(image | {"conversations": turns("<image>\nDescribe it.", f"It is {colour}.")})
        chats.append(image | {"conversations": turns("<image>\nWhich colour?", colour, "Is it pink?", "no")})
        text.append({"id": f"text {colour}", "conversations": turns(f"Say {colour}.", colour)})
    for name, samples in (
        ("captions", captions),
        ("chats", [chats[0], text[0], chats[1], text[1], *chats[2:]]),
        ("text", text),
    ):
        (folder / f"{name}.json").write_text(json.dumps(samples))
    return folder


@pytest.fixture
def zero3() -> Iterator[None]:
    """As transformers has it after --deepspeed train/zero3.json."""
    config = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
    yield
    del config
    unset_hf_deepspeed_config()
