"""Bootstrapping under DeepSpeed, with one and two processes, in bf16 and compiled follows a plain run."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.forked import run_together
from tests.train.launch import deepspeed, forked
from tests.train.vision.bootstrap_runs import RESUMABLE, arguments, assert_same, evaluated, measuring, trained, weights
from train.bootstrap import main


@pytest.mark.usefixtures("zero3")
def test_zero3_is_refused(clip_dir: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(clip_dir, images, tmp_path)) == 2
    assert "use train/configs/deepspeed/zero2.json, not ZeRO-3" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_zero2_processes_follow_one_process(
    processes: int, clip_dir: Path, images: Path, whole: Path, tmp_path: Path
) -> None:
    """The same global batches; gradients are summed in another order, and AdamW amplifies that where they are near
    zero: losses agree to 1e-4 of about 1, cosines of the held-out images too."""
    options = {"per_device_train_batch_size": 4 // processes, "deepspeed": "train/configs/deepspeed/zero2.json"}
    command = arguments(clip_dir, images, tmp_path, eval_data_path=images, **RESUMABLE, **options)
    start = deepspeed if processes > 1 else forked
    start("train.bootstrap", [*command, "--num_processes", str(processes)], processes)
    for name, lines in (("loss", trained), ("cosine", trained), ("eval_cosine", evaluated)):
        found, expected = ([line[name] for line in lines(out)] for out in (tmp_path, whole))
        assert found == pytest.approx(expected, abs=1e-4)
    assert [line["eval_images"] for line in evaluated(tmp_path)] == [8] * 5
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(tmp_path)[name], value, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_two_processes_without_deepspeed_follow_one(
    clip_dir: Path, images: Path, image_shards: str, whole: Path, tmp_path: Path
) -> None:
    """torch's DistributedDataParallel. Held-out images come from shards, which one process reads for both."""
    options = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 3, "num_processes": 2}
    options |= {"ddp_backend": "gloo"}
    command = arguments(clip_dir, images, tmp_path, eval_data_path=image_shards, **RESUMABLE, **options)
    forked("train.bootstrap", command)
    for name, lines in (("loss", trained), ("eval_cosine", evaluated)):
        found, expected = ([line[name] for line in lines(out)] for out in (tmp_path, whole))
        assert found == pytest.approx(expected, abs=1e-4)
    assert [line["eval_images"] for line in evaluated(tmp_path)] == [8] * 5


@pytest.mark.slow
def test_two_processes_exclude_the_same_images(clip_dir: Path, images: Path, damaged: Path, tmp_path: Path) -> None:
    """Ten held-out images, two of them unreadable, in batches of 2 × 3: the last one is filled up."""
    options = {"max_steps": 1, "eval_steps": 1, "learning_rate": 0, "per_device_eval_batch_size": 3}
    options |= {"zero_shot_data_path": damaged}
    assert main(measuring(clip_dir, images, damaged, tmp_path / "one", **options)) == 0
    options |= {"per_device_train_batch_size": 2, "ddp_backend": "gloo"}
    forked("train.bootstrap", measuring(clip_dir, images, damaged, tmp_path / "two", **options))
    line = evaluated(tmp_path / "two")[-1]
    assert line == pytest.approx(evaluated(tmp_path / "one")[-1], abs=1e-5)
    assert (line["eval_images"], line["eval_unreadable"], line["eval_zero_shot_unreadable"]) == (8, 2, 2)


@pytest.mark.slow
def test_deepspeed_resumes_and_publishes_the_best_checkpoint(
    clip_dir: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The learning rate is so high that the alignment falls again. Runs without DeepSpeed refuse its checkpoints."""
    options: dict[str, Any] = {"learning_rate": 0.05, "lr_scheduler_type": "constant", "ema_decay": 0.3, "max_steps": 6}
    options |= {"eval_data_path": images, "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}
    options |= {"keep_checkpoints": True, "save_total_limit": 9}
    whole, again = tmp_path / "whole", tmp_path / "again"
    forked(
        "train.bootstrap",
        arguments(clip_dir, images, whole, **options, deepspeed="train/configs/deepspeed/zero2.json"),
        1,
    )
    alignment = json.loads((whole / "alignment.json").read_text())
    best = max(evaluated(whole), key=lambda line: line["eval_cosine"])
    assert best["step"] < 6
    assert alignment["weights"] == f"the moving average (decay 0.3) of step {best['step']} (best alignment)"
    assert alignment["alignment_cosine"] == pytest.approx(best["eval_cosine"], abs=1e-5)
    shutil.copytree(whole / "checkpoint-3", again / "checkpoint-3")
    shutil.copy(whole / "log.jsonl", again / "log.jsonl")
    assert main(arguments(clip_dir, images, again, **options)) == 2
    assert "its deepspeed_processes is 1, this run's is 0" in capsys.readouterr().err
    forked(
        "train.bootstrap",
        arguments(clip_dir, images, again, **options, deepspeed="train/configs/deepspeed/zero2.json"),
        1,
    )
    assert_same(again, whole)


@pytest.mark.slow
def test_bf16_is_autocast_with_deepspeed_as_without(clip_dir: Path, images: Path, tmp_path: Path) -> None:
    """Weights are float32 in both cases, so coordinates are too."""
    options = {"max_steps": 2, "per_device_train_batch_size": 2, "teacher_dtype": "bfloat16", "bf16": True}
    assert main(arguments(clip_dir, images, tmp_path / "alone", **options)) == 0
    command = arguments(clip_dir, images, tmp_path / "zero2", deepspeed="train/configs/deepspeed/zero2.json", **options)
    forked("train.bootstrap", command, 1)
    losses = [[line["loss"] for line in trained(tmp_path / out)] for out in ("alone", "zero2")]
    assert losses[1] == pytest.approx(losses[0], abs=1e-2)
    assert all(value.dtype == torch.float32 for value in weights(tmp_path / "zero2").values())


@pytest.mark.slow
def test_a_compiled_task_gives_the_same_curve(clip_dir: Path, images: Path, whole: Path, tmp_path: Path) -> None:
    """Captured and differentiated by torch.compile; inductor would take minutes on two cores."""
    options = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    command = arguments(clip_dir, images, tmp_path, eval_data_path=images, **RESUMABLE, **options)
    run_together(["-m", "train.bootstrap", *command], [{}], tmp_path / "printed.txt")
    assert [line["loss"] for line in trained(tmp_path)] == pytest.approx([x["loss"] for x in trained(whole)], abs=1e-4)
