"""The instruction stage end to end on a tiny VLM: full, LoRA, tower tuning, ZeRO."""

from pathlib import Path

import pytest
import torch

from sparse_vlm.vlm.build import load_vlm
from tests.train.test_align import changed, deepspeed, flags, losses
from train import instruct

# peft 0.21 asks transformers 5.23 for a property under its old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
LORA = {"lora_enable": True, "lora_r": 4, "lora_alpha": 8}


def run(vlm_dir: Path, data_dir: Path, out: Path, **options: object) -> set[str]:
    """Runs the stage on chats.json (images and text-only samples mixed); what changed."""
    options = {"data_path": data_dir / "chats.json", "learning_rate": 1e-3, **options}
    assert instruct.main(flags(vlm_dir, data_dir, out, **options)) == 0
    load_vlm(out, dtype=torch.float32)
    return changed(vlm_dir, out)


def test_full_tuning_leaves_the_tower_alone(vlm_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    assert run(vlm_dir, data_dir, tmp_path / "out", max_steps=20) == {"language_model", "multi_modal_projector"}
    curve = losses(tmp_path / "out")
    assert sum(curve[-5:]) < 0.9 * sum(curve[:5])


def test_tower_tuning_has_its_own_rate(vlm_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    options = {"unfreeze_mm_vision_tower": True, "mm_vision_tower_lr": 2e-4, "mm_projector_lr": 0.0}
    assert run(vlm_dir, data_dir, tmp_path / "out", **options) == {"language_model", "vision_tower"}
    table = (tmp_path / "out" / "what_trains.txt").read_text()
    assert [line.split()[-1] for line in table.splitlines()[1:]] == ["0.0002", "0", "0.001"]


def test_lora_is_merged_into_a_plain_directory(vlm_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(vlm_dir, data_dir, out, **LORA) == {"language_model", "multi_modal_projector"}
    assert not list(out.glob("adapter*"))
    assert {path.name for path in vlm_dir.iterdir()} <= {path.name for path in out.iterdir()}


def test_independent_turns_train(vlm_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    run(vlm_dir, data_dir, tmp_path / "a", independent_turns=True, max_steps=20)
    curve = losses(tmp_path / "a")
    assert sum(curve[-5:]) < 0.9 * sum(curve[:5])


@pytest.mark.parametrize("options", [{}, LORA])
def test_an_interrupted_run_goes_on_to_the_same_curve(
    vlm_dir: Path, data_dir: Path, tmp_path: Path, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(vlm_dir, data_dir, tmp_path / "whole", save_steps=2, **options)
    arguments = {"save_steps": 2, **options}
    with monkeypatch.context() as patch:
        patch.setattr("train.vlm.ConversationTrainer", _interrupted_trainer())
        with pytest.raises(KeyboardInterrupt):
            run(vlm_dir, data_dir, tmp_path / "halves", **arguments)
    assert (tmp_path / "halves" / "checkpoint-4").is_dir()
    run(vlm_dir, data_dir, tmp_path / "halves", **arguments)
    assert losses(tmp_path / "halves") == losses(tmp_path / "whole")
    assert changed(tmp_path / "whole", tmp_path / "halves") == set()


def _interrupted_trainer() -> type:
    """The stage's trainer, stopped as by Ctrl-C after step 5."""
    from transformers import TrainerCallback

    from train.vlm import ConversationTrainer

    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, **_):  # type: ignore[no-untyped-def]
            if state.global_step == 5:
                raise KeyboardInterrupt

    class Interrupted(ConversationTrainer):
        def __init__(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            super().__init__(*args, **kwargs)
            self.add_callback(Interrupt())

    return Interrupted


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, LORA])
def test_two_processes_with_zero3_follow_one_process(
    vlm_dir: Path, data_dir: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    """Tolerances as in test_align. Text-only samples and images lie side by side: a global batch has both."""
    common = {"train_sampling_strategy": "sequential", "max_steps": 5, "lora_dropout": 0.0, **options}
    run(vlm_dir, data_dir, tmp_path / "one", per_device_train_batch_size=2, **common)
    more = {"data_path": data_dir / "chats.json", "learning_rate": 1e-3, "per_device_train_batch_size": 1}
    more |= {"deepspeed": "train/zero3.json", "num_processes": 2}
    deepspeed("train/instruct.py", flags(vlm_dir, data_dir, tmp_path / "two", **common, **more))
    load_vlm(tmp_path / "two", dtype=torch.float32)
    assert changed(vlm_dir, tmp_path / "two") == changed(vlm_dir, tmp_path / "one")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-3)
