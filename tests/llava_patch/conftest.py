"""Checkpoints that the real LLaVA trains with a SparseFormer tower, once per session."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from sparse_vlm.encoder import SparseFormer, SparseFormerConfig
from tests.llava_patch.tiny import make_data, make_llama, run_forked, training_arguments

TRAIN = ("-m", "llava_patch", "llava.train.train")


def train(*arguments: str) -> None:
    """Run LLaVA's training with the plug-in in a forked process."""
    out = arguments[arguments.index("--output_dir") + 1]
    run_forked(*TRAIN, *arguments, printed=Path(f"{out}.txt"))


@pytest.fixture(scope="session")
def llava() -> None:
    """Skip the test if LLaVA is not installed."""
    if find_spec("llava") is None:
        pytest.skip("LLaVA is not installed: pip install --no-deps llava-torch==1.2.2.post1")


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with its tokenizer."""
    return make_llama(tmp_path_factory.mktemp("llama") / "llama")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with plain.json, chat.json and their images."""
    return make_data(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="session")
def encoder_dir(tmp_path_factory: pytest.TempPathFactory, tiny_config: SparseFormerConfig) -> Path:
    """Directory of a tiny SparseFormer."""
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("encoder") / "tiny"
    SparseFormer(tiny_config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tower(encoder_dir: Path) -> str:
    """Name of that SparseFormer as a tower."""
    return f"sparseformer:{encoder_dir}"


@pytest.fixture(scope="session")
def pretrained(llava: None, llama: Path, tower: str, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of LLaVA's first stage, which trains the projector on captions."""
    out = tmp_path_factory.mktemp("pretrain") / "llava-tiny-pretrain"
    options = {"version": "plain", "tune_mm_mlp_adapter": True}
    train(*training_arguments(llama, tower, data, "plain.json", out, **options))
    return out


@pytest.fixture(scope="session")
def finetune_options(pretrained: Path) -> dict[str, object]:
    """Arguments of LLaVA's second stage."""
    return {
        "version": "v1",
        "pretrain_mm_mlp_adapter": pretrained / "mm_projector.bin",
        "group_by_modality_length": True,
    }


@pytest.fixture(scope="session")
def finetuned(
    llama: Path, tower: str, data: Path, finetune_options: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Checkpoints of every step of the second stage with full tuning, on image and text-only conversations."""
    out = tmp_path_factory.mktemp("finetune") / "llava-tiny"
    options = {**finetune_options, "save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    train(*training_arguments(llama, tower, data, "chat.json", out, **options))
    return out


@pytest.fixture(scope="session")
def lora(
    llama: Path, tower: str, data: Path, finetune_options: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Checkpoint of the second stage with LoRA."""
    out = tmp_path_factory.mktemp("lora") / "llava-tiny-lora"
    options = {**finetune_options, "lora_enable": True, "lora_r": 4}
    train(*training_arguments(llama, tower, data, "chat.json", out, **options))
    return out
