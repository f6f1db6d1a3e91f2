"""Options of the objective in a run: normalised targets, the grid decoder, an earlier block, an earlier student."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.rois import lay_out_rois
from tests.train.launch import deepspeed
from tests.train.vision.bootstrap_runs import RESUMABLE, arguments, make, trained
from train.bootstrap import main
from train.stages.log import read_log
from train.vision.bootstrap_trainer import EMA_FILE

GRID: dict[str, Any] = {
    "normalize_targets": "standardize",
    "feature_weight": 0.1,
    "grid_weight": 1.0,
    "grid_decoder_width": 64,
    "grid_decoder_depth": 1,
    "entry_weight": 1.0,
}


@pytest.fixture(scope="module")
def run(clip_dir: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with decoder and statistics and its checkpoints."""
    out = tmp_path_factory.mktemp("grid")
    options = {**RESUMABLE, **GRID, "keep_checkpoints": True, "save_total_limit": 9, "eval_data_path": images}
    assert main(arguments(clip_dir, images, out, **options)) == 0
    return out


@pytest.mark.slow
def test_the_decoder_trains_and_is_not_published(run: Path) -> None:
    lines = [line for line in read_log(run / "log.jsonl") if "loss" in line]
    assert {"alignment_loss", "feature_loss", "entry_loss", "grid_loss"} <= set(lines[0])
    assert "grid decoders" in (run / "parameter_groups.txt").read_text()
    weights = SparseFormer.from_pretrained(run).state_dict()
    assert not [name for name in weights if "decoder" in name or "targets" in name]
    report = json.loads((run / "inheritance.json").read_text())
    assert {fate["student"] for fate in report["fates"]} - {""} == set(weights)


@pytest.mark.slow
def test_a_resumed_run_continues_the_decoder_exactly(run: Path, clip_dir: Path, images: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "checkpoint-2", tmp_path / "checkpoint-2")
    options = {**RESUMABLE, **GRID, "keep_checkpoints": True, "save_total_limit": 9, "eval_data_path": images}
    assert main(arguments(clip_dir, images, tmp_path, **options)) == 0
    assert trained(tmp_path)[-3:] == trained(run)[-3:]
    ours, theirs = (SparseFormer.from_pretrained(out).state_dict() for out in (tmp_path, run))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (tmp_path / "checkpoint-4" / EMA_FILE).is_file()


@pytest.mark.slow
def test_two_zero2_processes_train_the_decoder_like_one(
    run: Path, clip_dir: Path, images: Path, tmp_path: Path
) -> None:
    options = {**RESUMABLE, **GRID, "eval_data_path": images, "per_device_train_batch_size": 2, "num_processes": 2}
    command = arguments(clip_dir, images, tmp_path, **options, deepspeed="train/configs/deepspeed/zero2.json")
    deepspeed("train.bootstrap", command, 2)
    for name in ("loss", "alignment_loss", "feature_loss", "entry_loss", "grid_loss"):
        found, expected = ([line[name] for line in trained(out)] for out in (tmp_path, run))
        assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"normalize_targets": "center"}, {"grid_weight": 0.0}])
def test_another_objective_is_another_run(
    change: dict[str, Any],
    run: Path,
    clip_dir: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(run / "checkpoint-2", tmp_path / "checkpoint-2")
    options = {**RESUMABLE, **GRID, "eval_data_path": images, **change}
    assert main(arguments(clip_dir, images, tmp_path, **options)) == 2
    assert "belongs to another variant" in capsys.readouterr().err


def test_an_earlier_block_is_neither_run_nor_inherited(clip_dir: Path, images: Path, tmp_path: Path) -> None:
    assert main(arguments(clip_dir, images, tmp_path, teacher_layer=-2, max_steps=1)) == 0
    student = SparseFormer.from_pretrained(tmp_path)
    assert student.config.cortex.depth == 3  # of six blocks, the last is cut off and the first two are dropped
    assert student.config.teacher.endswith(", block 4")
    report = json.loads((tmp_path / "inheritance.json").read_text())
    assert not [fate for fate in report["fates"] if fate["teacher"].startswith("blocks.5.")]


def test_a_student_continues_on_larger_images(clip_dir: Path, images: Path, tmp_path: Path) -> None:
    assert main(arguments(clip_dir, images, tmp_path / "small", max_steps=1)) == 0
    options = {"continue_from": tmp_path / "small", "image_size": 64}
    task = make(arguments(clip_dir, images, tmp_path / "large", **options)).task
    small = SparseFormer.from_pretrained(tmp_path / "small")
    assert (small.config.preprocessing.crop, task.student.config.preprocessing.crop) == (32, 64)
    weights = task.student.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in small.state_dict().items())


def test_an_elastic_student_continues_with_its_layout(clip_dir: Path, images: Path, tmp_path: Path) -> None:
    """Not with the RoIs that were learned for one count."""
    assert main(arguments(clip_dir, images, tmp_path / "fixed", max_steps=1)) == 0
    options = {"continue_from": tmp_path / "fixed", "tokens": "2-9", "default_tokens": 4}
    student = make(arguments(clip_dir, images, tmp_path / "elastic", **options)).task.student
    fixed = SparseFormer.from_pretrained(tmp_path / "fixed")
    assert torch.equal(student.focus.initial_rois.weight, lay_out_rois(4))
    assert not torch.equal(fixed.focus.initial_rois.weight, lay_out_rois(4))
    assert torch.equal(student.stem.conv.weight, fixed.stem.conv.weight)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"teacher_layer": 6}, "has no block 6: its blocks are 0 to 5, or -1 to -6"),
        ({"teacher_layer": -7}, "has no block -7"),
        ({"normalize_targets": "whiten"}, "Unknown --normalize_targets 'whiten'"),
        ({"grid_decoder_width": 100}, "--grid_decoder_width must be a multiple of 64"),
        ({"grid_decoder_depth": 0}, "--grid_decoder_depth must lie in [1, inf)"),
        ({"grid_weight": -1}, "must be finite and not negative"),
        ({"continue_from": "nowhere"}, "nowhere"),
        ({"continue_from": "nowhere", "match_tokens": True}, "leave out --match_tokens"),
    ],
)
def test_bad_options_are_one_line(
    options: dict[str, Any],
    error: str,
    clip_dir: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(arguments(clip_dir, images, tmp_path / "out", **options)) == 2
    assert error in capsys.readouterr().err


def test_a_student_of_another_shape_is_refused(
    clip_dir: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(clip_dir, images, tmp_path / "one", max_steps=1)) == 0
    options = {"continue_from": tmp_path / "one", "tokens": 9}
    assert main(arguments(clip_dir, images, tmp_path / "two", **options)) == 2
    assert "its focus is FocusConfig" in capsys.readouterr().err
