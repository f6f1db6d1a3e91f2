"""An interrupted bootstrap resumes with the same curve bit for bit, or is refused with a one-line error."""

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.forked import run_program
from tests.train.vision.bootstrap_runs import RESUMABLE, arguments, assert_same
from train.bootstrap import main


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 3, 5])
def test_any_checkpoint_resumes_with_the_same_curve(
    step: int, clip_dir: Path, images: Path, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    shutil.copy(whole / "log.jsonl", tmp_path / "log.jsonl")
    assert main(arguments(clip_dir, images, tmp_path, eval_data_path=images, **RESUMABLE)) == 0
    assert_same(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wds", "wds-resampled"])
def test_streams_resume_with_the_same_pixels(kind: str, clip_dir: Path, image_shards: str, tmp_path: Path) -> None:
    """Two data workers, each with its own shards; step 3 lies within an epoch."""
    shards = image_shards.replace("wds", kind, 1)
    options = {"max_steps": 5, "save_steps": 1, "ema_decay": 0.9, "dataloader_num_workers": 2, "shuffle_buffer": 4}
    kept = {**options, "keep_checkpoints": True, "save_total_limit": 9}
    assert main(arguments(clip_dir, shards, tmp_path / "whole", **kept)) == 0
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "whole/checkpoint-3", again / "checkpoint-3")
    shutil.copy(tmp_path / "whole/log.jsonl", again / "log.jsonl")
    assert main(arguments(clip_dir, shards, again, **options)) == 0
    assert_same(again, tmp_path / "whole")


@pytest.mark.slow
def test_a_kill_during_a_save_loses_only_the_steps_since_the_last_checkpoint(
    clip_dir: Path, images: Path, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The process dies with half an optimizer.pt in checkpoint-4, so the run resumes from checkpoint-2."""
    program = """
        import os, signal, sys
        from pathlib import Path
        from train import bootstrap
        from train.vision.bootstrap_trainer import BootstrapTrainer

        class Killed(BootstrapTrainer):
            def _save_optimizer_and_scheduler(self, output_dir):
                super()._save_optimizer_and_scheduler(output_dir)
                if self.state.global_step == 4:
                    file = Path(output_dir) / "optimizer.pt"
                    os.truncate(file, file.stat().st_size // 2)
                    os.kill(os.getpid(), signal.SIGKILL)

        bootstrap.BootstrapTrainer = Killed
        bootstrap.main(sys.argv[1:])
    """
    out = tmp_path / "out"
    command = arguments(clip_dir, images, out, eval_data_path=images, **RESUMABLE)
    run_program(program, *command, folder=tmp_path, exitcode=-signal.SIGKILL)
    assert (out / "checkpoint-4/optimizer.pt").exists()
    assert not (out / "config.json").exists()
    assert main(command) == 0
    assert f"Resuming from {out / 'checkpoint-2'}" in caplog.text
    assert f"Removing the incomplete checkpoint {out / 'checkpoint-4'}" in caplog.text
    assert_same(out, whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 9}, "its student.focus.tokens is 4, this run's is 9"),
        ({"tune_blocks": 1}, "its groups.inherited, frozen is 399872, this run's is 598144"),
        ({"ema_decay": None}, "its ema is True, this run's is False"),
    ],
)
def test_a_checkpoint_of_another_variant_is_a_one_line_error(
    clip_dir: Path,
    images: Path,
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, Any],
    message: str,
) -> None:
    shutil.copytree(whole / "checkpoint-2", tmp_path / "checkpoint-2")
    values = {name: value for name, value in {**RESUMABLE, **options}.items() if value is not None}
    assert main(arguments(clip_dir, images, tmp_path, eval_data_path=images, **values)) == 2
    assert f"checkpoint-2 belongs to another variant: {message}" in capsys.readouterr().err


def test_a_teacher_of_other_weights_is_another_variant(
    clip_dir: Path, images: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = shutil.copytree(clip_dir, tmp_path / clip_dir.name)
    weights = load_file(teacher / "open_clip_model.safetensors")
    weights["visual.transformer.resblocks.5.mlp.c_fc.bias"] += 1e-3
    save_file(weights, teacher / "open_clip_model.safetensors")
    shutil.copytree(whole / "checkpoint-2", tmp_path / "out" / "checkpoint-2")
    assert main(arguments(teacher, images, tmp_path / "out", eval_data_path=images, **RESUMABLE)) == 2
    assert "checkpoint-2 belongs to another variant: its teacher_weights is " in capsys.readouterr().err


def test_a_checkpoint_without_a_variant_is_a_one_line_error(
    clip_dir: Path, images: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole / "checkpoint-2", tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-2/variant.json").unlink()
    assert main(arguments(clip_dir, images, tmp_path, eval_data_path=images, **RESUMABLE)) == 2
    assert "checkpoint-2 has no readable variant.json" in capsys.readouterr().err
