"""--visual_tokens and regions: one number per step in all processes, resumable, cached, recorded."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from sparse_vlm.data.conversations.dataset import Drawn
from sparse_vlm.encoder.token_counts import TokenCounts
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.build import build_vlm
from sparse_vlm.vlm.loading import load_vlm
from sparse_vlm.vlm.views import unpack_views
from tests.train.language.test_align import changed, flags, losses
from tests.train.language.test_instruct import INTERRUPTED, _interrupted_trainer
from tests.train.launch import forked
from train import align, instruct
from train.language import data
from train.language.data import make_data
from train.language.data_arguments import DataArguments
from train.language.order import DrawnOrder, LengthGroups, SeededOrder
from train.language.trainer import ConversationTrainer
from train.stages.drawn_counts import DrawnCounts
from train.stages.log import read_log
from train.stages.stage import StageArguments

DRAWN = DrawnCounts(TokenCounts.parse("2-8"), "linear", 42)
COUNTS = [DRAWN.count_at(step) for step in range(6)]


@pytest.fixture
def regions(data_dir: Path, tmp_path: Path) -> Path:
    """chats.json in which the last questions look at a region, except for text-only samples and two others."""
    records = json.loads((data_dir / "chats.json").read_text())
    for index, record in enumerate(records):
        if "image" in record and index not in (0, 4):
            record["conversations"][2]["value"] = "Is <region> pink, or <region>?"
            record["regions"] = [[0.4, 0.1, 0.6, 0.5], [0.3, 0.0, 0.5, 1.0]]
    (tmp_path / "regions.json").write_text(json.dumps(records))
    return tmp_path / "regions.json"


def counts(out: Path) -> list[float]:
    return [line["visual_tokens"] for line in read_log(out / "log.jsonl") if "loss" in line]


def test_the_numbers_differ() -> None:
    assert len(set(COUNTS)) > 2
    assert all(isinstance(count, int) for count in COUNTS)


@pytest.mark.slow
def test_the_loss_falls_and_the_numbers_are_logged(
    vlm_dir: Path, data_dir: Path, regions: Path, tmp_path: Path
) -> None:
    """Held-out data have the model's own number, so their loss is that of a run without the option."""
    held_out = {"eval_strategy": "steps", "eval_steps": 20, "eval_data_path": data_dir / "chats.json"}
    options = {"visual_tokens": "2-8", "region_tokens": 3, "max_steps": 40, "data_path": regions, **held_out}
    assert align.main(flags(vlm_dir, data_dir, tmp_path / "out", **options)) == 0
    curve = losses(tmp_path / "out")
    assert sum(curve[-5:]) < sum(curve[:5]) - 1
    assert counts(tmp_path / "out") == [DRAWN.count_at(step) for step in range(40)]
    model, processor = load_vlm(tmp_path / "out")
    assert (model.config.trained_visual_tokens, model.config.image_seq_length) == ("2-8", 6)
    assert (processor.region_tokens, load_vlm(vlm_dir)[1].region_tokens) == (3, 9)
    assert changed(vlm_dir, tmp_path / "out") == {"multi_modal_projector"}


@pytest.mark.slow
def test_held_out_data_have_the_models_own_number(vlm_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    found = []
    for name, options in (("drawn", {"visual_tokens": "2-8"}), ("own", {})):
        more = {"eval_strategy": "steps", "eval_steps": 1, "eval_data_path": data_dir / "chats.json", "max_steps": 1}
        arguments = flags(vlm_dir, data_dir, tmp_path / name, learning_rate=0, **more, **options)
        assert align.main(arguments) == 0
        found += [line["eval_loss"] for line in read_log(tmp_path / name / "log.jsonl") if "eval_loss" in line]
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.parametrize("order", ["random", "sequential", "group_by_length"])
@pytest.mark.parametrize("options", [{}, {"packing": True}, {"independent_turns": True}])
def test_all_batches_of_a_step_have_its_number(
    vlm_dir: Path,
    data_dir: Path,
    regions: Path,
    tmp_path: Path,
    order: str,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two batches accumulate; an epoch has two steps, the second of which has an incomplete batch."""
    seen: list[tuple[int, set[int]]] = []
    original = ConversationTrainer.training_step

    def recorded(trainer: Any, model: Any, inputs: Any, *args: Any, **more: Any) -> Any:
        views = unpack_views(inputs["views"]) if "views" in inputs else []
        seen.append((trainer.state.global_step, {view.tokens for view in views if view.box == (0, 0, 1, 1)}))
        return original(trainer, model, inputs, *args, **more)

    monkeypatch.setattr(ConversationTrainer, "training_step", recorded)
    more = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "max_steps": 4, "data_path": regions}
    more |= {"visual_tokens": "2,8", "train_sampling_strategy": order, "learning_rate": 1e-3, **options}
    assert instruct.main(flags(vlm_dir, data_dir, tmp_path / "out", **more)) == 0
    drawn = replace(DRAWN, counts=TokenCounts.parse("2,8"))
    assert [step for step, _ in seen] == [0, 0, 1, 2, 2, 3]
    assert all(found in (set(), {drawn.count_at(step)}) for step, found in seen)
    assert sum(bool(found) for _, found in seen) >= 4
    assert counts(tmp_path / "out") == [drawn.count_at(step) for step in range(4)]


@pytest.mark.parametrize(("rows", "batch", "accumulation"), [(10, 2, 1), (11, 2, 3), (3, 4, 2), (16, 4, 2)])
@pytest.mark.parametrize("drop_last", [False, True])
def test_processes_have_the_same_number_at_each_step(
    tmp_path: Path, rows: int, batch: int, accumulation: int, drop_last: bool
) -> None:
    """The batches of accelerate's own shards, also where it fills up the last ones."""

    def numbers(order: Any, processes: int, rank: int) -> Iterator[set[int]]:
        sampler = BatchSampler(order, batch, drop_last)
        shards: Any = BatchSamplerShard(sampler, processes, rank) if processes > 1 else sampler
        for drawn in shards:
            assert {len(drawn), batch} == {batch} or processes == 1
            yield {one.tokens for one in drawn}

    args = StageArguments(output_dir=str(tmp_path), use_cpu=True, bf16=False, per_device_train_batch_size=batch)
    args.gradient_accumulation_steps, args.dataloader_drop_last = accumulation, drop_last
    for processes in (1, 2, 3):
        vars(args)["distributed_state"] = None
        args_of = _WithProcesses(args, processes)
        order = DrawnOrder(SeededOrder(rows, 0), DRAWN, args_of)  # type: ignore[arg-type]
        step = 0
        for epoch in range(3):
            order.set_epoch(epoch)
            ranks = [list(numbers(order, processes, rank)) for rank in range(processes)]
            for together in zip(*ranks, strict=True):
                assert len(set().union(*together)) == 1
            for first in range(0, len(ranks[0]), accumulation):
                assert set().union(*ranks[0][first : first + accumulation]) == {DRAWN.count_at(step)}
                step += 1
            step += not ranks[0]  # transformers counts at least one step per epoch


class _WithProcesses:
    """The arguments of a stage as one of several processes sees them."""

    def __init__(self, args: StageArguments, processes: int) -> None:
        self.args, self.world_size = args, processes

    def __getattr__(self, name: str) -> Any:
        return getattr(self.args, name)


@pytest.mark.parametrize("order", [SeededOrder(32, 0), LengthGroups(2, [3, 9, 4, 8] * 8, 0)])
def test_rows_of_an_epoch_are_those_of_the_order(order: Any, tmp_path: Path) -> None:
    drawn = DrawnOrder(order, DRAWN, StageArguments(output_dir=str(tmp_path), use_cpu=True, bf16=False))
    epochs = []
    for epoch in range(2):
        drawn.set_epoch(epoch)
        torch.rand(1)
        epochs.append(list(drawn))
        assert epochs[epoch] == list(drawn)
        assert [one.place for one in epochs[epoch]] == list(order)
        assert sorted(order) == list(range(32))
    assert isinstance(epochs[0][0], Drawn)
    assert [one.place for one in epochs[0]] != [one.place for one in epochs[1]]


@pytest.mark.slow
@pytest.mark.parametrize("order", ["random", "group_by_length"])
def test_a_resumed_run_has_the_same_numbers_and_curve(
    vlm_dir: Path, data_dir: Path, regions: Path, tmp_path: Path, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoint 4 lies within the second epoch."""
    options = {"visual_tokens": "2-8", "data_path": regions, "learning_rate": 1e-3, "save_steps": 2}
    options |= {"train_sampling_strategy": order, "per_device_train_batch_size": 3}
    assert instruct.main(flags(vlm_dir, data_dir, tmp_path / "whole", **options)) == 0
    with monkeypatch.context() as patch:
        patch.setattr("train.language.vlm.ConversationTrainer", _interrupted_trainer())
        assert instruct.main(flags(vlm_dir, data_dir, tmp_path / "halves", **options)) == INTERRUPTED
    assert instruct.main(flags(vlm_dir, data_dir, tmp_path / "halves", **options)) == 0
    assert counts(tmp_path / "halves") == counts(tmp_path / "whole") == COUNTS
    assert losses(tmp_path / "halves") == losses(tmp_path / "whole")
    assert changed(tmp_path / "whole", tmp_path / "halves") == set()


@pytest.mark.slow
def test_other_numbers_do_not_resume(
    vlm_dir: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"visual_tokens": "2-8", "max_steps": 2, "save_steps": 1, "keep_checkpoints": True}
    assert align.main(flags(vlm_dir, data_dir, tmp_path / "out", **options)) == 0
    (tmp_path / "out" / "config.json").unlink()
    assert align.main(flags(vlm_dir, data_dir, tmp_path / "out", **options | {"visual_tokens": "2-9"})) == 2
    assert "its visual_tokens is 2-8, this run's is 2-9" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"packing": True}, {"independent_turns": True}, {"word_start": 6}])
def test_cached_tokens_give_the_same_curve(
    vlm_dir: Path,
    data_dir: Path,
    regions: Path,
    tmp_path: Path,
    options: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    more = {"visual_tokens": "2-8", "region_tokens": 3, "max_steps": 4, "data_path": regions, **options}
    more |= {"learning_rate": 1e-3}
    caplog.set_level("INFO", "train")
    for name, cache in (("without", {}), ("with", {"cache_visual_tokens": tmp_path / "cache"})):
        assert align.main(flags(vlm_dir, data_dir, tmp_path / name, **more, **cache)) == 0
    assert losses(tmp_path / "with") == pytest.approx(losses(tmp_path / "without"), abs=1e-4)
    # seven numbers of six images, and two regions of four of them
    assert "50 sets of visual tokens of 6 images" in caplog.text
    assert ": 50 computed now, 0 found" in caplog.text


@pytest.mark.slow
def test_two_processes_draw_the_numbers_of_one(vlm_dir: Path, data_dir: Path, regions: Path, tmp_path: Path) -> None:
    """ZeRO-2; one process has a text-only sample where the other has regions. Tolerance as in test_align."""
    common = {"visual_tokens": "2-8", "data_path": regions, "train_sampling_strategy": "sequential", "max_steps": 5}
    common |= {"learning_rate": 1e-3, "unfreeze_mm_vision_tower": True}
    alone = flags(vlm_dir, data_dir, tmp_path / "one", **common, per_device_train_batch_size=2)
    assert instruct.main(alone) == 0
    options = {"per_device_train_batch_size": 1, "deepspeed": "train/configs/deepspeed/zero2.json", "num_processes": 2}
    forked("train.instruct", flags(vlm_dir, data_dir, tmp_path / "two", **common, **options))
    assert counts(tmp_path / "two") == counts(tmp_path / "one") == COUNTS[:5]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-3)


@pytest.mark.slow
def test_two_processes_resume_with_the_same_numbers(vlm_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    """Three steps per epoch, of two processes each; checkpoint 4 lies in the second epoch."""
    more = {"deepspeed": "train/configs/deepspeed/zero2.json", "num_processes": 2, "per_device_train_batch_size": 1}
    more |= {"max_steps": 6, "save_steps": 4, "save_total_limit": 2, "keep_checkpoints": True, "visual_tokens": "2-8"}
    out, halves = tmp_path / "out", tmp_path / "halves"
    forked("train.align", flags(vlm_dir, data_dir, out, **more))
    shutil.copytree(out / "checkpoint-4", halves / "checkpoint-4")
    shutil.copy(out / "log.jsonl", halves)
    forked("train.align", flags(vlm_dir, data_dir, halves, **more))
    assert counts(halves) == counts(out) == COUNTS
    assert losses(halves) == losses(out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"visual_tokens": "0-4"}, "Token counts start at 1 and rise, got '0-4' in '0-4'."),
        ({"visual_tokens": "9-4"}, "Token counts start at 1 and rise, got '9-4' in '9-4'."),
        ({"visual_tokens": "many"}, "Token counts are written 16, 4-64 or 9,16,25, got 'many'."),
        ({"visual_tokens": "2-8", "token_density": "flat"}, "Unknown --token_density 'flat'."),
        ({"region_tokens": 0}, "--region_tokens must lie in [1, inf), got 0."),
        ({"visual_tokens": "2,99999"}, "Sample red has 1000"),
    ],
)
def test_bad_numbers_are_refused(
    vlm_dir: Path,
    data_dir: Path,
    tmp_path: Path,
    options: dict[str, Any],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Rows are checked with the largest number."""
    assert align.main(flags(vlm_dir, data_dir, tmp_path / "out", **options)) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed


@pytest.mark.slow
def test_a_dense_tower_has_neither_numbers_nor_regions(
    clip_dir: Path, llm_dir: Path, data_dir: Path, regions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_vlm(clip_dir, llm_dir, tmp_path / "dense")
    for options, message in (
        ({"visual_tokens": "2-4"}, "--visual_tokens needs a bootstrapped SparseFormer as the vision tower: this"),
        ({"region_tokens": 2}, "--region_tokens needs a bootstrapped SparseFormer"),
        ({"data_path": regions}, "Sample green has regions, at which only a bootstrapped SparseFormer can look."),
    ):
        assert align.main(flags(tmp_path / "dense", data_dir, tmp_path / "out", **options)) == 2
        assert message in capsys.readouterr().err


def test_regions_with_zero3_are_refused(
    vlm_dir: Path, data_dir: Path, regions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes with different regions would wait for each other forever."""
    model, processor = load_vlm(vlm_dir)
    args = StageArguments(output_dir=str(tmp_path / "out"), use_cpu=True, bf16=False)
    data_args = DataArguments(str(regions), str(data_dir))
    monkeypatch.setattr(data, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(UserError, match=r"Sample green has regions, .* use train/configs/deepspeed/zero2\.json"):
        make_data(data_args, args, model, processor, language=True)
    make_data(DataArguments(str(data_dir / "chats.json"), str(data_dir)), args, model, processor, language=True)
