"""LLaVA's own training scripts with a SparseFormer tower: training, saving and resuming."""

import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from sparse_vlm.encoder import SparseFormer
from tests.llava_patch.conftest import train
from tests.llava_patch.tiny import losses, run_forked, training_arguments

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("llava")]
TOWER = "model.vision_tower.vision_tower."


def tower_of(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the encoder in a checkpoint."""
    return {key.removeprefix(TOWER): value for key, value in weights.items() if key.startswith(TOWER)}


def test_alignment_only_trains_the_projector(pretrained: Path) -> None:
    assert len(losses(pretrained)) == 2
    weights = torch.load(pretrained / "mm_projector.bin", weights_only=True)
    assert {re.sub(r".*mm_projector\.", "", key) for key in weights} == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert next(iter(weights.values())).isfinite().all()
    assert not (pretrained / "model.safetensors").exists()


def test_alignment_with_the_real_smollm2(smollm2_gguf: Path, tower: str, data: Path, tmp_path: Path) -> None:
    """Two steps on captions with SmolLM2-135M-Instruct from its package, saved as a directory that LLaVA opens."""
    from sparse_vlm.vlm.language.causal_lm import load_llm  # only this test needs transformers 5

    for part in load_llm(smollm2_gguf):
        part.save_pretrained(tmp_path / "smollm2")
    out = tmp_path / "llava-smollm2"
    options = {"version": "plain", "tune_mm_mlp_adapter": True, "per_device_train_batch_size": 2}
    train(*training_arguments(tmp_path / "smollm2", tower, data, "plain.json", out, **options))
    first, _ = losses(out)
    assert first < 8  # the loss of an untrained model is log(49,152 tokens) = 10.8
    weights = torch.load(out / "mm_projector.bin", weights_only=True)
    assert {len(value) for value in weights.values()} == {576}
    assert all(value.isfinite().all() for value in weights.values())


def test_the_checkpoint_describes_its_tower(pretrained: Path, tower: str, encoder_dir: Path) -> None:
    config = json.loads((pretrained / "config.json").read_text())
    assert config["mm_vision_tower"] == tower
    assert config["mm_hidden_size"] == 128
    recorded = config["mm_sparseformer"]
    expected = json.loads((encoder_dir / "config.json").read_text())
    assert {key: recorded[key] for key in ("stem", "focus", "cortex")} == {
        key: expected[key] for key in ("stem", "focus", "cortex")
    }


def test_full_tuning_saves_the_frozen_tower_with_the_tuned_llm(
    finetuned: Path, pretrained: Path, llama: Path, encoder_dir: Path
) -> None:
    weights = load_file(finetuned / "model.safetensors")
    encoder = SparseFormer.from_pretrained(encoder_dir).state_dict()
    tower = tower_of(weights)
    assert tower.keys() == encoder.keys()
    # LLaVA casts the tower to float16 without --bf16
    assert all(
        torch.equal(tower[key].to(encoder[key].dtype), encoder[key].to(tower[key].dtype).to(encoder[key].dtype))
        for key in encoder
    )
    before = load_file(llama / "model.safetensors")
    assert not torch.equal(weights["model.layers.0.mlp.up_proj.weight"], before["model.layers.0.mlp.up_proj.weight"])
    aligned = torch.load(pretrained / "mm_projector.bin", weights_only=True)
    key = next(key for key in aligned if key.endswith("mm_projector.0.weight"))
    assert not torch.equal(weights["model.mm_projector.0.weight"], aligned[key])


def test_resume_gives_the_same_curve(
    finetuned: Path, llama: Path, tower: str, data: Path, finetune_options: dict[str, object], tmp_path: Path
) -> None:
    whole = losses(finetuned)
    out = tmp_path / "llava-resumed"
    options = {**finetune_options, "save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    command = training_arguments(llama, tower, data, "chat.json", out, **options)
    out.mkdir()
    (out / "checkpoint-1").symlink_to(finetuned / "checkpoint-1")
    train(*command)
    assert losses(out) == pytest.approx(whole, rel=1e-6)
    assert len(whole) == 3
    resumed, expected = (load_file(path / "model.safetensors") for path in (out, finetuned))
    assert all(torch.equal(resumed[key], value) for key, value in expected.items())


def test_lora_does_not_adapt_the_tower(lora: Path) -> None:
    adapter = load_file(lora / "adapter_model.safetensors")
    assert adapter
    assert not any("vision_tower" in key for key in adapter)
    others = torch.load(lora / "non_lora_trainables.bin", weights_only=True)
    assert {key.split("mm_projector.")[-1] for key in others} == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_an_unfreezing_fork_trains_the_tower(llama: Path, tower: str, data: Path, tmp_path: Path) -> None:
    """LLaVA 1.2.2 never unfreezes a tower, but its forks do, after building it."""
    program = tmp_path / "fork.py"
    program.write_text(
        "import llava_patch\nllava_patch.install()\n"
        "from llava_patch.tower import SparseFormerTower\n"
        "from llava.model.llava_arch import LlavaMetaModel\n"
        "initialize = LlavaMetaModel.initialize_vision_modules\n"
        "def unfreezing(self, *args, **kwargs):\n"
        "    initialize(self, *args, **kwargs)\n"
        "    self.get_vision_tower().vision_tower.focus.requires_grad_(True)\n"
        "    self.get_vision_tower().vision_tower.float()\n"
        "LlavaMetaModel.initialize_vision_modules = unfreezing\n"
        "from llava.train.train import train\ntrain()\n"
    )
    out = tmp_path / "llava-unfrozen"
    options = {"version": "v1", "bf16": True, "learning_rate": 1e-2}
    command = training_arguments(llama, tower, data, "chat.json", out, **options)
    run_forked(program, *command, printed=tmp_path / "printed.txt")
    tuned = tower_of(load_file(out / "model.safetensors"))
    before = SparseFormer.from_pretrained(tower.removeprefix("sparseformer:")).state_dict()
    changed = {
        key.split(".")[0] for key in before if not torch.equal(tuned[key].float(), before[key].bfloat16().float())
    }
    assert "focus" in changed


@pytest.mark.skipif(transformers.__version__ < "5", reason="transformers 4 knows these arguments itself")
@pytest.mark.parametrize("bits", [4, 8])
def test_qlora_trains(
    llama: Path, tower: str, data: Path, finetune_options: dict[str, object], tmp_path: Path, bits: int
) -> None:
    """LLaVA's --bits: adapters and projector are trained, in LLaVA's own lower precision."""
    out = tmp_path / "llava-tiny-qlora"
    options = {**finetune_options, "lora_enable": True, "lora_r": 4, "bits": bits, "bf16": True}
    train(*training_arguments(llama, tower, data, "chat.json", out, **options))
    adapter = load_file(out / "adapter_model.safetensors")
    moved = [value.abs().max() > 0 for name, value in adapter.items() if ".lora_B." in name]
    assert len(moved) == 2 * 7
    assert all(moved)
    assert not [name for name in adapter if "vision_tower" in name or "mm_projector" in name]
