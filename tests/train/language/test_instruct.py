"""The instruction stage end to end on a tiny VLM: full, LoRA, tower tuning, ZeRO."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sparse_vlm.errors import UserError
from sparse_vlm.vlm.loading import load_vlm
from tests.train.language.test_align import changed, flags, losses
from tests.train.launch import deepspeed, forked
from train import instruct, merge_lora
from train.language.data_arguments import DataArguments
from train.stages.log import read_log

# peft 0.21 asks transformers 5.23 for a property under its old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
LORA = {"lora_enable": True, "lora_r": 4, "lora_alpha": 8}
QLORA = {**LORA, "bits": 4}
FOCUSING = {"tune_focusing": True, "mm_focusing_lr": 2e-4}
ORDERS = [{"train_sampling_strategy": name} for name in ("random", "sequential", "group_by_length")]
INTERRUPTED = 130  # by Ctrl-C
WITHIN_EPOCH_2 = {"per_device_train_batch_size": 3}  # three steps per epoch: checkpoint-4 lies in the second


def run(vlm_dir: Path, data_dir: Path, out: Path, **options: object) -> set[str]:
    """Run the stage on chats.json (images and text-only samples mixed) and return the changed modules."""
    options = {"data_path": data_dir / "chats.json", "learning_rate": 1e-3, **options}
    assert instruct.main(flags(vlm_dir, data_dir, out, **options)) == 0
    load_vlm(out, dtype=torch.float32)
    return changed(vlm_dir, out)


@pytest.mark.slow
def test_full_tuning_keeps_the_tower(vlm_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    assert run(vlm_dir, data_dir, tmp_path / "out", max_steps=20) == {"language_model", "multi_modal_projector"}
    curve = losses(tmp_path / "out")
    assert sum(curve[-5:]) < 0.9 * sum(curve[:5])


@pytest.mark.slow
def test_tower_tuning_has_its_own_rate(vlm_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    options = {"unfreeze_mm_vision_tower": True, "mm_vision_tower_lr": 2e-4, "mm_projector_lr": 0.0}
    assert run(vlm_dir, data_dir, tmp_path / "out", **options) == {"language_model", "vision_tower"}
    table = (tmp_path / "out" / "parameter_groups.txt").read_text()
    assert [line.split()[-1] for line in table.splitlines()[1:]] == ["0.0002", "0", "0.001"]


@pytest.mark.slow
@pytest.mark.parametrize("lora", [{}, LORA])
def test_focusing_alone_can_be_tuned(vlm_dir: Path, data_dir: Path, tmp_path: Path, lora: dict[str, object]) -> None:
    out = tmp_path / "out"
    everything = {"language_model", "vision_tower", "multi_modal_projector"}
    assert run(vlm_dir, data_dir, out, **FOCUSING, **lora) == everything
    old, new = (load_file(folder / "model.safetensors") for folder in (vlm_dir, out))
    tower = {name: torch.equal(old[name], new[name]) for name in old if ".vision_tower." in name}
    assert all(same for name, same in tower.items() if ".cortex." in name)
    assert not all(same for name, same in tower.items() if ".focus." in name)
    assert not all(same for name, same in tower.items() if ".stem." in name)
    assert "focusing" in (out / "parameter_groups.txt").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 4}, "--bits 4 freezes the language model: add --lora_enable True"),
        ({"bits": 8}, "--bits must be 4 or 16, got 8"),
        ({**QLORA, "quant_type": "nf5"}, "Unknown --quant_type 'nf5'"),
        ({**LORA, "lora_r": 0}, "--lora_r must lie in [1, inf), got 0"),
        ({"mm_focusing_lr": 1e-3}, "--mm_focusing_lr needs --tune_focusing True"),
        ({"load_best_model_at_end": True, "save_strategy": "no"}, "load_best_model_at_end"),
    ],
)
def test_contradictory_settings_are_a_one_line_error(
    vlm_dir: Path,
    data_dir: Path,
    tmp_path: Path,
    options: dict[str, object],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = flags(vlm_dir, data_dir, tmp_path / "out", data_path=data_dir / "chats.json", **options)
    assert instruct.main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("lora", [LORA, QLORA])
def test_lora_is_merged_into_a_plain_directory(
    vlm_dir: Path, data_dir: Path, tmp_path: Path, lora: dict[str, object]
) -> None:
    out = tmp_path / "out"
    assert run(vlm_dir, data_dir, out, **lora) == {"language_model", "multi_modal_projector"}
    assert not list(out.glob("adapter*"))
    assert {path.name for path in vlm_dir.iterdir()} <= {path.name for path in out.iterdir()}


@pytest.mark.slow
def test_independent_turns_train(vlm_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    run(vlm_dir, data_dir, tmp_path / "a", independent_turns=True, max_steps=20)
    curve = losses(tmp_path / "a")
    assert sum(curve[-5:]) < 0.9 * sum(curve[:5])


@pytest.mark.slow
def test_a_checkpoint_of_an_adapter_is_small_and_merges_to_the_same_model(
    vlm_dir: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, merged = tmp_path / "out", tmp_path / "merged"
    run(vlm_dir, data_dir, out, save_steps=6, keep_checkpoints=True, **QLORA)
    adapter = out / "checkpoint-6"
    size = sum(file.stat().st_size for file in adapter.iterdir() if file.suffix != ".json")
    assert size < 0.2 * (vlm_dir / "model.safetensors").stat().st_size
    words = ["--model_name_or_path", str(vlm_dir), "--adapter", str(adapter), "--output_dir", str(merged)]
    assert merge_lora.main(words) == 0
    assert changed(out, merged) == set()
    assert merge_lora.main([*words, "--dtype", "bfloat16"]) == 0
    weights = load_file(merged / "model.safetensors")
    assert {weights[name].dtype for name in weights if ".language_model." in name} == {torch.bfloat16}
    words[3] = str(vlm_dir)
    assert merge_lora.main(words) == 2
    assert "does not hold a LoRA adapter" in capsys.readouterr().err


def test_a_missing_checkpoint_is_named_with_the_option_that_keeps_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model_name_or_path", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    assert merge_lora.main([*words, "--adapter", str(tmp_path / "checkpoint-1")]) == 2
    assert capsys.readouterr().err == (
        f"error: There is no checkpoint {tmp_path / 'checkpoint-1'}; train.instruct removes its checkpoints at the end "
        "unless --keep_checkpoints True.\n"
    )


@pytest.mark.slow
def test_gradient_checkpointing_trains_to_the_same_curve(vlm_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    run(vlm_dir, data_dir, tmp_path / "kept", lora_dropout=0.0, **LORA)
    run(vlm_dir, data_dir, tmp_path / "again", lora_dropout=0.0, activation_checkpointing=True, **LORA)
    assert losses(tmp_path / "again") == pytest.approx(losses(tmp_path / "kept"), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, LORA, QLORA, FOCUSING, *(order | WITHIN_EPOCH_2 for order in ORDERS)])
def test_an_interrupted_run_resumes_with_the_same_curve(
    vlm_dir: Path, data_dir: Path, tmp_path: Path, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(vlm_dir, data_dir, tmp_path / "whole", save_steps=2, **options)
    arguments = {"save_steps": 2, **options}
    with monkeypatch.context() as patch:
        patch.setattr("train.language.vlm.ConversationTrainer", _interrupted_trainer())
        words = {"data_path": data_dir / "chats.json", "learning_rate": 1e-3, **arguments}
        assert instruct.main(flags(vlm_dir, data_dir, tmp_path / "halves", **words)) == INTERRUPTED
    assert (tmp_path / "halves" / "checkpoint-4").is_dir()
    run(vlm_dir, data_dir, tmp_path / "halves", **arguments)
    assert losses(tmp_path / "halves") == losses(tmp_path / "whole")
    assert changed(tmp_path / "whole", tmp_path / "halves") == set()


@pytest.mark.slow
def test_bad_samples_met_while_reading_are_replaced_and_a_run_resumes_exactly(
    vlm_dir: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of eight samples: a damaged image, and a text without its placeholder."""
    records = json.loads((data_dir / "chats.json").read_text())
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG no")
    records[2] |= {"image": str(tmp_path / "damaged.png")}
    records[5] |= {"image": "red.png", "conversations": records[1]["conversations"]}
    (tmp_path / "data.json").write_text(json.dumps(records))
    options: dict[str, object] = {"data_path": tmp_path / "data.json", "save_steps": 2, "dataloader_num_workers": 1}
    options |= {"check_samples": "while_reading", "on_bad_sample": "skip"}
    run(vlm_dir, data_dir, tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        patch.setattr("train.language.vlm.ConversationTrainer", _interrupted_trainer())
        words = {"learning_rate": 1e-3, **options}
        assert instruct.main(flags(vlm_dir, data_dir, tmp_path / "halves", **words)) == INTERRUPTED
    run(vlm_dir, data_dir, tmp_path / "halves", **options)
    assert losses(tmp_path / "halves") == losses(tmp_path / "whole")
    counts = [line["bad_samples"] for line in read_log(tmp_path / "whole" / "log.jsonl")]
    assert counts == sorted(counts)
    assert counts[-1] == 6, "three epochs"
    with pytest.raises(UserError, match="leave out --check_samples while_reading"):
        DataArguments("data.json", cache_visual_tokens="cache", check_samples="while_reading")


def _interrupted_trainer() -> type:
    """The stage's trainer, stopped as by Ctrl-C after step 5."""
    from transformers import TrainerCallback

    from train.language.trainer import ConversationTrainer

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
@pytest.mark.parametrize(
    ("start", "config", "options"), [(deepspeed, "zero3", {}), (forked, "zero3", LORA), (forked, "zero3_offload", {})]
)
def test_two_processes_with_zero3_follow_one_process(
    vlm_dir: Path,
    data_dir: Path,
    tmp_path: Path,
    start: Callable[[str, list[str]], None],
    config: str,
    options: dict[str, object],
) -> None:
    """Tolerances as in test_align. Text-only samples and images lie side by side: a global batch has both."""
    common = {"train_sampling_strategy": "sequential", "max_steps": 5, "lora_dropout": 0.0, **options}
    run(vlm_dir, data_dir, tmp_path / "one", per_device_train_batch_size=2, **common)
    more = {"data_path": data_dir / "chats.json", "learning_rate": 1e-3, "per_device_train_batch_size": 1}
    more |= {"deepspeed": f"train/configs/deepspeed/{config}.json", "num_processes": 2}
    if config == "zero3_offload":  # the second process needs the tower, which only the first has read
        more |= {"cache_visual_tokens": tmp_path / "cache"}
    start("train.instruct", flags(vlm_dir, data_dir, tmp_path / "two", **common, **more))
    load_vlm(tmp_path / "two", dtype=torch.float32)
    assert changed(vlm_dir, tmp_path / "two") == changed(vlm_dir, tmp_path / "one")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-3)


@pytest.mark.slow
def test_zero3_in_bf16_trains_coordinates_as_one_process_does(vlm_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    """The remaining difference is bf16 noise elsewhere (measured: 7 % of the updates)."""
    options: dict[str, object] = {"unfreeze_mm_vision_tower": True, "bf16": True, "max_steps": 5}
    options |= {"train_sampling_strategy": "sequential", "optim": "sgd"}  # SGD's steps are as exact as the gradients
    run(vlm_dir, data_dir, tmp_path / "one", per_device_train_batch_size=2, **options)
    more = {"data_path": data_dir / "chats.json", "learning_rate": 1e-3, "per_device_train_batch_size": 1}
    more |= {"deepspeed": "train/configs/deepspeed/zero3.json", "num_processes": 2, **options}
    forked("train.instruct", flags(vlm_dir, data_dir, tmp_path / "two", **more))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-2)
    old, one, two = (load_file(path / "model.safetensors") for path in (vlm_dir, tmp_path / "one", tmp_path / "two"))
    islands = [name for name in one if re.search(r"\.(initial_rois|points|encoding|adjustment)\.", name)]
    assert len(islands) == 22
    for name in islands:
        assert one[name].dtype == two[name].dtype == torch.float32
        assert (one[name] - two[name]).norm() < 0.15 * (one[name] - old[name]).norm(), name


@pytest.mark.slow
@pytest.mark.parametrize(("config", "options"), [("zero2", QLORA), ("zero3", {}), ("zero3", LORA)])
def test_a_run_under_deepspeed_resumes_with_the_same_curve(
    vlm_dir: Path, data_dir: Path, tmp_path: Path, config: str, options: dict[str, object]
) -> None:
    """The checkpoint holds only trained weights; the tower is frozen."""
    more = {"data_path": data_dir / "chats.json", "learning_rate": 1e-3, "per_device_train_batch_size": 2}
    more |= {
        "deepspeed": f"train/configs/deepspeed/{config}.json",
        "save_steps": 2,
        "max_steps": 4,
        "save_total_limit": 2,
    }
    more |= {"keep_checkpoints": True, **options}
    out, halves = tmp_path / "out", tmp_path / "halves"
    forked("train.instruct", flags(vlm_dir, data_dir, out, **more), 1)
    shutil.copytree(out / "checkpoint-2", halves / "checkpoint-2")
    shutil.copy(out / "log.jsonl", halves)
    forked("train.instruct", flags(vlm_dir, data_dir, halves, **more), 1)
    assert losses(halves) == pytest.approx(losses(out), abs=1e-5)
    assert changed(out, halves) == set()


@pytest.mark.slow
def test_two_processes_resume_within_the_second_epoch(vlm_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    """Three steps per epoch: checkpoint-4 lies in the second, whose seen batches are skipped in that epoch's order."""
    more = {
        "deepspeed": "train/configs/deepspeed/zero2.json",
        "num_processes": 2,
        "per_device_train_batch_size": 1,
        "max_steps": 6,
    }
    more |= {"save_steps": 4, "save_total_limit": 2, "keep_checkpoints": True}
    more |= {"train_sampling_strategy": "group_by_length"}
    out, halves = tmp_path / "out", tmp_path / "halves"
    forked("train.align", flags(vlm_dir, data_dir, out, **more))
    shutil.copytree(out / "checkpoint-4", halves / "checkpoint-4")
    shutil.copy(out / "log.jsonl", halves)
    forked("train.align", flags(vlm_dir, data_dir, halves, **more))
    assert losses(halves) == losses(out)
