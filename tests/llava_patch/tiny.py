"""A tiny Llama with a real SentencePiece tokenizer, tiny LLaVA data, and LLaVA's commands for them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from tests.forked import ROOT, run_together

COLOURS = ("red", "green", "blue", "yellow", "black", "white", "orange", "purple")
WORDS = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. USER: ASSISTANT: "
    f"Describe it. Which colour is it? It is {' '.join(COLOURS)}. Say yes or no. Human: Assistant: ###"
)


def make_llama(folder: Path) -> Path:
    """Save a random Llama with 2 layers of width 64, and a tokenizer with 400 pieces, in a format for all versions."""
    folder.mkdir(parents=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([WORDS] * 20),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    tokenizer = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"add_bos_token": True, "legacy": True}))
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=400,
        max_position_embeddings=512,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make_data(folder: Path) -> Path:
    """Write eight noisy images of a single colour, plain.json (captions) and chat.json (with and without images)."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    plain, chat = [], []
    for colour in COLOURS:
        pixels = np.asarray(Image.new("RGB", (48, 32), colour), dtype=np.int16)
        noisy = (pixels + generator.integers(-20, 20, pixels.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{colour}.png")
        sample = {"id": colour, "image": f"{colour}.png"}
        plain.append(sample | {"conversations": _turns("<image>", f"It is {colour}.")})
        chat.append(sample | {"conversations": _turns("<image>\nWhich colour is it?", colour, "Describe it.", "no")})
        chat.append({"id": f"text {colour}", "conversations": _turns(f"Say {colour}.", colour)})
    (folder / "plain.json").write_text(json.dumps(plain))
    (folder / "chat.json").write_text(json.dumps(chat))
    return folder


def _turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(texts)]


def training_arguments(llama: Path, tower: str, data: Path, file: str, out: Path, **options: object) -> list[str]:
    """LLaVA's arguments for a short training run on the CPU."""
    settings: dict[str, object] = {
        "model_name_or_path": llama,
        "vision_tower": tower,
        "data_path": data / file,
        "image_folder": data,
        "output_dir": out,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad",
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "model_max_length": 256,
        "dataloader_num_workers": 0,
        "lazy_preprocess": True,
        "report_to": "none",
        "use_cpu": True,
        "seed": 1,
        **options,
    }
    return [text for name, value in settings.items() for text in (f"--{name}", str(value))]


def losses(directory: Path) -> list[float]:
    """Loss of every step, from the Trainer's log."""
    history = json.loads((directory / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def run(*command: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python …` in the root of the project, with one thread, offline."""
    result = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    if check and result.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))}\n{result.stdout[-3000:]}\n{result.stderr[-6000:]}")
    return result


def run_forked(*command: str, printed: Path, exitcode: int = 0) -> str:
    """Do the same in a forked process, without starting an interpreter, and return its output."""
    environments = [{"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}]
    return run_together(list(map(str, command)), environments, printed, exitcode)
