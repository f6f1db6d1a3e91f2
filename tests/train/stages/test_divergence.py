"""A run that diverges: a one-line error, finite checkpoints, nothing is published."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sparse_vlm.errors import UserError
from sparse_vlm.files import write_json
from tests.train.stages.test_stage import trainer
from tests.train.vision.bootstrap_runs import arguments, make
from train.bootstrap import main
from train.stages.arguments import StageArguments
from train.stages.checkpoints import last_checkpoint
from train.stages.divergence import require_finite
from train.stages.log import read_log
from train.stages.stage import run
from train.vision.bootstrap_trainer import BootstrapTrainer


class Break(TrainerCallback):
    """Set a weight to NaN in a step's update."""

    def __init__(self, parameter: torch.nn.Parameter, step: int) -> None:
        self.parameter, self.step = parameter, step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        if state.global_step == self.step:
            self.parameter.data.view(-1)[0] = math.nan


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "logged_every", "message", "lines"),
    [
        (4, 1, r"weights are not finite at step 4\. ", [1, 2, 3, 4]),  # its loss was finite; a checkpoint is due
        (5, 1, r"loss is nan at step 6\. ", [1, 2, 3, 4, 5]),
        (5, 5, r"weights are not finite at step 6\. ", [5]),  # before the next logged step
        (8, 1, r"weights are not finite at step 8\. ", [1, 2, 3, 4, 5, 6, 7, 8]),
    ],
)
def test_the_last_finite_checkpoint_stays(
    broken: int, logged_every: int, message: str, lines: list[int], tmp_path: Path
) -> None:
    stage = trainer(tmp_path, logging_steps=logged_every)
    stage.add_callback(Break(stage.model.lm_head.weight, broken))
    with pytest.raises(UserError, match=message + "Nothing was published"):
        run(stage)
    checkpoint = last_checkpoint(tmp_path)
    assert checkpoint == tmp_path / f"checkpoint-{2 * ((broken - 1) // 2)}"
    restored = trainer(tmp_path / "restored").model
    stage.load_weights(str(checkpoint), restored)
    assert all(parameter.isfinite().all() for parameter in restored.parameters())
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == lines


@pytest.mark.slow
def test_a_run_that_diverges_in_its_last_update_is_not_published(tmp_path: Path) -> None:
    stage = trainer(tmp_path, save_strategy="no", max_steps=3)
    stage.add_callback(Break(stage.model.lm_head.weight, 3))
    with pytest.raises(UserError, match="weights are not finite at step 3"):
        run(stage)


def test_frozen_weights_may_be_infinite(tmp_path: Path) -> None:
    """The padding row of an embedding may hold anything."""
    stage = trainer(tmp_path, max_steps=2)
    stage.model.model.embed_tokens.weight.data[49] = math.nan
    stage.train_dataset = [row for row in stage.train_dataset if 49 not in row["input_ids"]]
    stage.groups = [group for group in stage.groups if group.name != "head"]
    stage._require_finite_weights()


@pytest.mark.slow
def test_a_gradient_norm_may_be_infinite_with_a_loss_scale(tmp_path: Path) -> None:
    require_finite({"loss": 1.0, "grad_norm": math.inf, "epoch": 1, "eval_auroc": None}, 3)
    with pytest.raises(UserError, match="eval_loss is inf at step 3"):
        require_finite({"eval_loss": math.inf}, 3)
    stage = trainer(tmp_path, max_steps=1)
    stage.add_callback(InfiniteNorm())
    run(stage)
    text = (tmp_path / "log.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["grad_norm"] is None


class InfiniteNorm(TrainerCallback):
    def on_log(self, *_: object, logs: dict[str, float], **__: object) -> None:
        if "loss" in logs:
            logs["grad_norm"] = math.inf


def test_the_filter_that_hides_divergence_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--logging_nan_inf_filter True .* hide that training diverges"):
        StageArguments(output_dir=str(tmp_path), use_cpu=True, logging_nan_inf_filter=True)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.1, 100])
def test_a_bootstrap_that_diverges_ends_with_a_one_line_error(
    clip_dir: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], rate: float
) -> None:
    """torch's backward pass would kill the process at sampling points that are NaN."""
    options = {"learning_rate": rate, "max_steps": 60, "logging_steps": 7, "save_steps": 1}
    assert main(arguments(clip_dir, images, tmp_path / "out", **options)) == 2
    assert "error: Training has diverged: " in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out/config.json").exists()
    checkpoint = last_checkpoint(tmp_path / "out")
    assert checkpoint is not None
    stage = make(arguments(clip_dir, images, tmp_path / "again", **options))
    stage.load_weights(str(checkpoint), stage.task)
    assert all(parameter.isfinite().all() for parameter in stage.task.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("held_out", [True, False])
def test_infinite_rois_are_not_published(
    clip_dir: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    held_out: bool,
) -> None:
    """The loss does not show them: the sine of a RoI is finite, and all points lie on the image's edge."""

    def run_and_grow(stage: BootstrapTrainer) -> None:
        run(stage)
        stage.student.focus.initial_rois.weight.data.copy_(torch.tensor([-3e30, -3e30, 3e30, 3e30]))

    monkeypatch.setattr("train.bootstrap.run", run_and_grow)
    options = {"eval_data_path": images} if held_out else {}
    assert main(arguments(clip_dir, images, tmp_path / "out", max_steps=1, **options)) == 2
    assert "error: Training has diverged: roi_size is inf at step 1." in capsys.readouterr().err
    assert not (tmp_path / "out/config.json").exists()


def test_the_log_has_only_finite_numbers(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.json is not written: rois\.1\.size is not a finite number"):
        write_json(tmp_path / "a.json", {"rois": [{"size": 1.0}, {"size": math.inf}]})
    assert not list(tmp_path.iterdir())
