"""Resume, log, parameter groups and start checks, with HF Trainer on a tiny Llama."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import IterableDataset
from transformers import LlamaConfig, LlamaForCausalLM

from sparse_vlm.errors import UserError
from tests.forked import run_program
from train.stages.checkpoints import last_checkpoint
from train.stages.log import read_log
from train.stages.stage import (
    ParameterGroup,
    StageArguments,
    prepare,
    run,
    set_trainable,
)
from train.stages.trainer import StageTrainer

STEPS = 8


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 32, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, hidden_size=16, attention_dropout=0.1, **heads))


def two_groups(model: LlamaForCausalLM) -> list[ParameterGroup]:
    head, layers = model.lm_head.weight, tuple(model.model.layers.parameters())
    rest = tuple(p for p in model.parameters() if all(p is not q for q in (head, *layers)))
    return [
        ParameterGroup("head", (head,), 1e-2),
        ParameterGroup("layers", layers, 1e-3),
        ParameterGroup("rest", rest, None),
    ]


def trainer(output_dir: Path, **options: object) -> StageTrainer:
    model = tiny_llama()
    groups = two_groups(model)
    set_trainable(model, groups)
    ids = torch.randint(50, (24, 10), generator=torch.Generator().manual_seed(1))
    data = [{"input_ids": row, "labels": row} for row in ids]
    values = {"per_device_train_batch_size": 3, "max_steps": STEPS, "save_steps": 2, "weight_decay": 0.1, **options}
    args = StageArguments(
        output_dir=str(output_dir),
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **{"bf16": False, **values},  # type: ignore[arg-type]
    )
    return StageTrainer(groups, model=model, args=args, train_dataset=data)


def curve(output_dir: Path) -> list[tuple[float, float, float]]:
    return [(line["step"], line["loss"], line["lr"]) for line in read_log(output_dir / "log.jsonl")]


def test_evaluation_never_drops_the_last_batch(tmp_path: Path) -> None:
    sizes = {"per_device_train_batch_size": 5, "per_device_eval_batch_size": 5}
    stage = trainer(tmp_path, dataloader_drop_last=True, **sizes)
    assert [len(batch["labels"]) for batch in stage.get_eval_dataloader(stage.train_dataset)] == [5, 5, 5, 5, 4]
    assert [len(batch["labels"]) for batch in stage.get_train_dataloader()] == [5, 5, 5, 5]


class Numbers(IterableDataset):
    """A stream that every reader would yield in full."""

    def __len__(self) -> int:
        return 6

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return ({"labels": torch.tensor([number])} for number in range(6))


def test_held_out_data_is_read_once_for_any_training_loader(tmp_path: Path) -> None:
    stage = trainer(tmp_path, dataloader_num_workers=2, dataloader_persistent_workers=True)
    for held_out in (Numbers(), [{"labels": torch.tensor([number])} for number in range(3)]):
        loader = stage.get_eval_dataloader(held_out)
        assert [row for batch in loader for row in batch["labels"].flatten().tolist()] == list(range(len(held_out)))
        assert not loader.persistent_workers  # transformers would return the first set's loader for the second
    assert (stage.args.dataloader_num_workers, stage.args.dataloader_persistent_workers) == (2, True)


def test_each_group_has_its_rate_and_norms_do_not_decay(tmp_path: Path) -> None:
    stage = trainer(tmp_path)
    groups = stage.create_optimizer().param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(1e-2, 0.1), (1e-3, 0.1), (1e-3, 0.0)]
    assert all(parameter.ndim == 1 for parameter in groups[2]["params"])  # the RMS norms
    trained = {id(p) for group in groups for p in group["params"]}
    assert trained == {id(p) for p in stage.model.parameters() if p.requires_grad}


def test_set_trainable_counts_every_parameter_once() -> None:
    model = tiny_llama()
    groups = two_groups(model)
    table = set_trainable(model, groups)
    assert "head                                800  0.01" in table
    assert table.splitlines()[-1].endswith("frozen")
    assert not model.model.embed_tokens.weight.requires_grad
    assert model.lm_head.weight.requires_grad
    for wrong in (groups[:2], [*groups, groups[0]]):
        with pytest.raises(ValueError, match="exactly once"):
            set_trainable(model, wrong)


@pytest.mark.slow
def test_a_killed_run_resumes_with_the_same_curve(tmp_path: Path) -> None:
    run(trainer(tmp_path / "whole"))
    program = """
        import os, signal, sys
        from pathlib import Path
        from transformers import TrainerCallback
        from tests.train.stages.test_stage import trainer, run

        class Kill(TrainerCallback):
            def on_log(self, args, state, control, **_):
                if state.global_step == 5:
                    os.kill(os.getpid(), signal.SIGKILL)

        stage = trainer(Path(sys.argv[1]))
        stage.add_callback(Kill())
        run(stage)
    """
    halves = tmp_path / "halves"
    run_program(program, str(halves), folder=tmp_path, exitcode=-signal.SIGKILL)
    cut_short = halves / "checkpoint-6"  # as if killed while writing it
    cut_short.mkdir()
    (cut_short / "trainer_state.json").write_text('{"global_step": 6')
    checkpoint = last_checkpoint(halves)
    assert checkpoint == halves / "checkpoint-4"
    run(trainer(halves))
    assert curve(halves) == curve(tmp_path / "whole")
    assert len(curve(halves)) == STEPS
    seconds = [line["seconds"] for line in read_log(halves / "log.jsonl")]
    assert seconds == sorted(seconds)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_damaged_checkpoint_is_a_one_line_error(name: str, tmp_path: Path) -> None:
    run(trainer(tmp_path, save_total_limit=2))
    shutil.rmtree(tmp_path / f"checkpoint-{STEPS}")
    (tmp_path / f"checkpoint-{STEPS - 2}" / name).write_bytes(b"damaged")
    with pytest.raises(UserError, match=rf"checkpoint-{STEPS - 2} cannot be restored \(.*\)\. If .* remove it"):
        run(trainer(tmp_path))


@pytest.mark.slow
def test_a_finished_but_unpublished_run_does_not_train_further(tmp_path: Path) -> None:
    """The last step lies within an epoch (6 batches of 4), where transformers would take one more step."""
    whole = trainer(tmp_path, per_device_train_batch_size=4)
    run(whole)
    again = trainer(tmp_path, per_device_train_batch_size=4)
    before = curve(tmp_path)
    run(again)
    assert curve(tmp_path) == before
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_a_deepspeed_checkpoint_is_refused_without_deepspeed(tmp_path: Path) -> None:
    """transformers would silently continue with a new optimizer."""
    run(trainer(tmp_path, max_steps=4))
    variant = tmp_path / "checkpoint-4/variant.json"
    assert json.loads(variant.read_text()) == {"deepspeed_processes": 0, "dtype": "float32"}
    variant.write_text('{"deepspeed_processes": 8}')
    with pytest.raises(UserError, match="its deepspeed_processes is 8, this run's is 0"):
        run(trainer(tmp_path, max_steps=6))


@pytest.mark.slow
def test_a_run_does_not_continue_in_another_precision(tmp_path: Path) -> None:
    run(trainer(tmp_path, max_steps=4))
    with pytest.raises(UserError, match="its dtype is float32, this run's is bfloat16"):
        run(trainer(tmp_path, max_steps=6, bf16=True))


@pytest.mark.slow
def test_incomplete_checkpoints_do_not_count_as_kept(tmp_path: Path) -> None:
    """By its number, the incomplete checkpoint-7 is newer than checkpoint-4, the only complete one."""
    run(trainer(tmp_path, max_steps=4))
    (tmp_path / "checkpoint-7").mkdir()
    run(trainer(tmp_path, max_steps=6))
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-6"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:There seems not to be a single sample")
def test_a_run_without_a_batch_is_a_one_line_error(tmp_path: Path) -> None:
    """transformers would accept step 0, and the starting weights would be published."""
    with pytest.raises(UserError, match="ended before its first step: the data do not fill one batch"):
        run(trainer(tmp_path, per_device_train_batch_size=32, dataloader_drop_last=True))


def test_contradictory_values_are_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="load_best_model_at_end requires the save and eval strategy to match"):
        StageArguments(output_dir=str(tmp_path), use_cpu=True, load_best_model_at_end=True)


@pytest.mark.slow
def test_the_seed_determines_the_curve(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(trainer(tmp_path / name, seed=seed))
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    assert curve(tmp_path / "a") != curve(tmp_path / "c")


@pytest.mark.parametrize("name", ["file", "file/out"])
def test_an_output_directory_that_cannot_be_made_is_a_one_line_error(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"Cannot write the directory .*{name}: .*/file is a file"):
        prepare(StageArguments(output_dir=str(tmp_path / name), use_cpu=True))


def test_deepspeed_without_its_launcher_is_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deepspeed = pytest.importorskip("deepspeed")

    def discover() -> None:
        raise ModuleNotFoundError("No module named 'mpi4py'")

    monkeypatch.setattr(deepspeed, "init_distributed", discover)
    args = StageArguments(output_dir=str(tmp_path), use_cpu=True)
    args.deepspeed = "train/configs/deepspeed/zero2.json"
    with pytest.raises(UserError, match="--deepspeed needs a launcher"):
        prepare(args)


def test_start_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = StageArguments(output_dir=str(tmp_path), use_cpu=True, num_processes=2)
    with pytest.raises(UserError, match="Expected 2 processes, but 1 are running"):
        prepare(args)
    args = StageArguments(output_dir=str(tmp_path), use_cpu=True, warmup_ratio=0.03)
    assert args.warmup_steps == 0.03
    prepare(args)
    args.resume_from_checkpoint = "old/checkpoint-4"
    with pytest.raises(UserError, match=r"--resume_from_checkpoint old/checkpoint-4 is not .* --output_dir by itself"):
        prepare(args)
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match="already holds a finished model"):
        prepare(args)


def test_a_line_cut_short_by_a_crash_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1}' + os.linesep + '{"step": 2')
    assert read_log(tmp_path / "log.jsonl") == [{"step": 1}]
