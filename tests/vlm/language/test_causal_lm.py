"""Opening a causal LM, errors for missing, damaged and unsuitable ones, and generation settings."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import (
    PreTrainedTokenizerBase,
)

from sparse_vlm.errors import UserError
from sparse_vlm.vlm.build import build_vlm
from sparse_vlm.vlm.language.causal_lm import load_llm
from sparse_vlm.vlm.loading import load_vlm


def logits_of(model: Any, inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def is_tied(model: Any) -> bool:
    return model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


@pytest.mark.parametrize(
    ("llm", "gguf_file", "message"),
    [
        ("/nowhere/at/all", None, "There is no LLM directory /nowhere/at/all"),
        ("/nowhere/at/all", "model.gguf", "There is no LLM directory /nowhere/at/all"),
        ("/nowhere/model.gguf", None, "There is no LLM directory /nowhere"),
        (
            "nowhere",
            None,
            r"There is no LLM directory nowhere\. Names on the Hugging Face hub have the form OWNER/NAME",
        ),
        ("EMPTY", "model.gguf", r"There is no file model.gguf in .*; .gguf files there: none"),
        ("EMPTY", None, r"is not an LLM directory: it has no config\.json"),
    ],
)
def test_missing_llm(tmp_path: Path, llm: str, gguf_file: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_llm(tmp_path if llm == "EMPTY" else llm, gguf_file)


def test_damaged_llm(tmp_path: Path, llm_dir: Path) -> None:
    (tmp_path / "config.json").write_bytes((llm_dir / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"The LLM .* cannot be opened"):
        load_llm(tmp_path)
    (tmp_path / "broken.gguf").write_bytes(b"no GGUF")
    with pytest.raises(UserError, match=r"The LLM .* cannot be opened"):
        load_llm(tmp_path, "broken.gguf")


def test_missing_and_misshapen_weights_of_an_llm_are_errors(tmp_path: Path, llm_dir: Path) -> None:
    llm = shutil.copytree(llm_dir, tmp_path / "llm")
    weights = load_file(llm / "model.safetensors")
    save_file({name: value for name, value in weights.items() if "layers.1" not in name}, llm / "model.safetensors")
    with pytest.raises(UserError, match=r"missing_keys: model\.layers\.1\.input_layernorm.* and 4 more"):
        load_llm(llm)
    save_file(weights | {"model.norm.weight": torch.zeros(3)}, llm / "model.safetensors")
    with pytest.raises(UserError, match=r"mismatched_keys: .*model\.norm\.weight"):
        load_llm(llm)


def test_a_truncated_gguf_file(tmp_path: Path, smollm2_gguf: Path) -> None:
    with smollm2_gguf.open("rb") as file:
        (tmp_path / "cut.gguf").write_bytes(file.read(1000))
    with pytest.raises(UserError, match=r"The LLM .*/cut\.gguf cannot be opened: unpack_from"):
        load_llm(tmp_path / "cut.gguf")


@pytest.mark.slow
def test_an_llm_without_padding_token_gets_one(
    tmp_path: Path, encoder_dir: Path, llm_dir: Path, smollm2_tokenizer: PreTrainedTokenizerBase
) -> None:
    llm, tokenizer = load_llm(llm_dir)
    tokenizer.pad_token = None
    llm.save_pretrained(tmp_path / "llm")
    tokenizer.save_pretrained(tmp_path / "llm")
    build_vlm(encoder_dir, tmp_path / "llm", tmp_path / "vlm")
    assert load_vlm(tmp_path / "vlm")[1].tokenizer.pad_token == smollm2_tokenizer.eos_token


@pytest.mark.slow
def test_an_llms_generation_settings_can_be_saved_after_training(
    tmp_path: Path, encoder_dir: Path, llm_dir: Path
) -> None:
    """Vicuna-7B-v1.5's have sampling values without do_sample, which transformers saves only if nothing changes."""
    llm = shutil.copytree(llm_dir, tmp_path / "llm")
    settings = {"eos_token_id": [5, 6], "pad_token_id": 0, "max_length": 4096, "temperature": 0.9, "top_p": 0.6}
    (llm / "generation_config.json").write_text(json.dumps(settings))
    build_vlm(encoder_dir, llm, tmp_path / "vlm")
    model: Any = load_vlm(tmp_path / "vlm")[0]
    generation = model.generation_config
    assert (generation.do_sample, generation.temperature, generation.top_p) == (None, None, None)  # greedy, as before
    assert (generation.eos_token_id, generation.pad_token_id, generation.max_length) == ([2, 5, 6], 2, 4096)
    generation.pad_token_id = 3
    model.save_pretrained(tmp_path / "trained")


@pytest.mark.slow
def test_an_llm_that_samples_keeps_sampling(tmp_path: Path, encoder_dir: Path, llm_dir: Path) -> None:
    llm = shutil.copytree(llm_dir, tmp_path / "llm")
    (llm / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.9, "top_p": 0.6}))
    build_vlm(encoder_dir, llm, tmp_path / "vlm")
    generation: Any = load_vlm(tmp_path / "vlm")[0].generation_config
    assert (generation.do_sample, generation.temperature, generation.top_p) == (True, 0.9, 0.6)


SIZES = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "initializer_range": 0.1}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
QUESTIONS = ["What is it?", "Which colour has the thing that lies on the left of the big red cube?", "Is it red?"]


@pytest.mark.parametrize("beside", [True, False])
def test_an_adapter_is_refused(llm_dir: Path, tmp_path: Path, beside: bool) -> None:
    """Both alone and beside a whole model, whose weights transformers would load under other names."""
    if beside:
        shutil.copytree(llm_dir, tmp_path, dirs_exist_ok=True)
    LoraConfig(r=2, target_modules=["q_proj"]).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"has a peft adapter .* Merge it into its base model first"):
        load_llm(tmp_path)


def test_an_llm_with_code_of_its_own_is_not_run(llm_dir: Path, tmp_path: Path) -> None:
    """And transformers does not prompt for permission in the terminal."""
    llm = shutil.copytree(llm_dir, tmp_path / "llm")
    config = json.loads((llm / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnForCausalLM"}}
    (llm / "config.json").write_text(json.dumps(config | own))
    (llm / "own.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(UserError, match=r"needs code of its own \(auto_map\), which is not run here"):
        load_llm(llm)
