"""train.bootstrap --tokens 2-6: an elastic student, whose number of tokens is drawn at each step."""

import json
import shutil
from pathlib import Path

import pytest

from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.rois import lay_out_rois
from sparse_vlm.encoder.token_counts import TokenCounts
from tests.train.launch import forked
from tests.train.vision.bootstrap_runs import arguments, assert_same, evaluated, trained
from train.bootstrap import main
from train.stages.drawn_counts import DrawnCounts

ELASTIC = {"tokens": "2-6", "default_tokens": 4, "eval_tokens": "3,6", "eval_steps": 2, "max_steps": 4}


@pytest.fixture(scope="module")
def run(clip_dir: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all its checkpoints."""
    out = tmp_path_factory.mktemp("elastic") / "out"
    options = {"save_steps": 1, "keep_checkpoints": True, "save_total_limit": 9, "eval_data_path": images}
    assert main(arguments(clip_dir, images, out, **ELASTIC, **options)) == 0
    return out


@pytest.mark.slow
def test_the_counts_are_drawn_recorded_and_evaluated(run: Path) -> None:
    drawn = DrawnCounts(TokenCounts.parse("2-6"), "linear", 42)
    assert [line["tokens"] for line in trained(run)] == [drawn.at(step) for step in range(4)]
    encoder = SparseFormer.from_pretrained(run)
    assert (encoder.config.focus.tokens, encoder.config.trained_tokens) == (4, "2-6")
    assert encoder.focus.initial_rois.weight.equal(lay_out_rois(4))  # not trained
    measured = json.loads((run / "alignment.json").read_text())
    assert {"cosine_3_tokens", "cosine_6_tokens"} <= set(measured)
    assert len({measured["alignment_cosine"], measured["cosine_3_tokens"], measured["cosine_6_tokens"]}) == 3
    fates = {fate["student"]: fate["fate"] for fate in json.loads((run / "inheritance.json").read_text())["fates"]}
    assert fates["focus.initial_rois.weight"] == "fixed layout"


@pytest.mark.slow
def test_a_resumed_run_draws_the_same_counts(run: Path, clip_dir: Path, images: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "checkpoint-1", tmp_path / "checkpoint-1")
    shutil.copy(run / "log.jsonl", tmp_path / "log.jsonl")
    assert main(arguments(clip_dir, images, tmp_path, **ELASTIC, save_steps=1, eval_data_path=images)) == 0
    assert_same(tmp_path, run)


@pytest.mark.slow
def test_two_processes_draw_the_same_counts(run: Path, clip_dir: Path, images: Path, tmp_path: Path) -> None:
    """DistributedDataParallel, which also fails if a trained parameter gets no gradient."""
    options = {"per_device_train_batch_size": 2, "num_processes": 2, "ddp_backend": "gloo", "eval_data_path": images}
    forked("train.bootstrap", arguments(clip_dir, images, tmp_path, **ELASTIC, **options))
    for name, lines in (("tokens", trained), ("loss", trained), ("eval_cosine_6_tokens", evaluated)):
        found, expected = ([line[name] for line in lines(out)] for out in (tmp_path, run))
        assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_another_density_is_another_run(
    run: Path, clip_dir: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run / "checkpoint-1", tmp_path / "checkpoint-1")
    options = {**ELASTIC, "save_steps": 1, "eval_data_path": images, "token_density": "uniform"}
    assert main(arguments(clip_dir, images, tmp_path, **options)) == 2
    assert "token_density is linear" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"tokens": "many"}, "Token counts are written 16, 4-64 or 9,16,25, got 'many'"),
        ({"tokens": "0-4"}, "Token counts start at 1"),
        ({"tokens": 4, "default_tokens": 4}, "are for several counts, but --tokens is 4"),
        ({"tokens": "2-6", "default_tokens": 7}, "The default of 7 tokens is not among the trained counts, 2-6"),
        ({"tokens": "2-6", "token_density": "flat"}, "Unknown --token_density 'flat'"),
    ],
)
def test_bad_counts_are_one_line(
    options: dict[str, object],
    error: str,
    clip_dir: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(arguments(clip_dir, images, tmp_path / "out", **options)) == 2
    assert error in capsys.readouterr().err
