"""train.bootstrap: images and a teacher become an encoder directory; moving average, best checkpoint."""

import json
import shutil
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sparse_vlm.bootstrap import open_teacher
from sparse_vlm.data.images.sources import open_images
from sparse_vlm.encoder import SparseFormer
from tests.train.vision.bootstrap_runs import RESUMABLE, arguments, evaluated, make, trained, weights
from train.bootstrap import main
from train.stages.log import read_log
from train.vision.bootstrap_trainer import MEASURED, ZERO_SHOT


@pytest.fixture
def names(tmp_path: Path) -> Path:
    file = tmp_path / "names.txt"
    file.write_text("cat\ndog\n")
    return file


@pytest.mark.slow
def test_the_result_is_an_encoder_directory(clip_dir: Path, images: Path, names: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = {"eval_data_path": images, "eval_steps": 2, "zero_shot_data_path": images, "class_names": names}
    options |= {"token_weight": 0.5, "feature_weight": 0.25, "entry_weight": 2.0, "teacher_image_size": 48}
    options |= {"report_to": "tensorboard"}
    assert main(arguments(clip_dir, images, out, **options)) == 0
    encoder = SparseFormer.from_pretrained(out)
    assert encoder(torch.randn(1, 3, 32, 32)).pooled.shape == (1, 24)
    lines = trained(out)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        terms = [line[f"{name}_loss"] for name in ("alignment", "token", "feature", "entry", "view")]
        weighted = zip((1.0, 0.5, 0.25, 2.0, 1.0), terms, strict=True)
        assert line["loss"] == pytest.approx(sum(weight * term for weight, term in weighted), abs=1e-5)
        assert line["cosine"] == pytest.approx(1 - terms[0], abs=1e-5)
    assert all(line["images_per_second"] > 0 for line in read_log(out / "log.jsonl") if "loss" in line)
    assert [line["step"] for line in evaluated(out)] == [2, 4]
    alignment = json.loads((out / "alignment.json").read_text())
    assert alignment["images"] == 8
    counts = {"images", "unreadable", "zero_shot_images", "zero_shot_unreadable"}
    assert {*MEASURED, *ZERO_SHOT, *counts} == {*alignment} - {"alignment_cosine", "weights"} | {"cosine"}
    last = evaluated(out)[-1]
    assert alignment["alignment_cosine"] == pytest.approx(last["eval_cosine"], abs=1e-6)
    assert alignment["weights"] == "the trained weights of step 4"
    for name in ("centered_cosine", "roi_size", "roi_spread", "roi_outside", "zero_shot_student", "zero_shot_teacher"):
        assert alignment[name] == pytest.approx(last[f"eval_{name}"], abs=1e-6)
    fates = {fate["fate"] for fate in json.loads((out / "inheritance.json").read_text())["fates"]}
    assert fates == {"new", "dropped", "copied and tuned", "copied and frozen"}
    for figure in ("losses.png", "rois.png"):
        assert min(matplotlib.image.imread(out / figure).shape[:2]) > 200
    assert list(out.glob("runs/*/events.out.tfevents.*"))
    assert not list(out.glob("checkpoint-*"))
    assert not list(out.glob(".*"))


def test_drop_last_is_for_training_only(clip_dir: Path, images: Path, tmp_path: Path) -> None:
    """Eight images in batches of 3."""
    options = {"per_device_train_batch_size": 3, "per_device_eval_batch_size": 3, "dataloader_drop_last": True}
    trainer = make(arguments(clip_dir, images, tmp_path, eval_data_path=images, **options))
    assert trainer.measure()["images"] == 8
    assert [len(batch["pixel_values"]) for batch in trainer.get_train_dataloader()] == [3, 3]


@pytest.mark.slow
def test_persistent_workers_measure_both_held_out_sets(
    clip_dir: Path, images: Path, names: Path, tmp_path: Path
) -> None:
    options = {"eval_data_path": images, "zero_shot_data_path": images, "class_names": names}
    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    measured = [make(arguments(clip_dir, images, tmp_path, **options, **more)).measure() for more in ({}, workers)]
    assert measured[0] == pytest.approx(measured[1])


@pytest.mark.slow
def test_checkpointed_activations_give_the_same_curve(
    clip_dir: Path, images: Path, whole: Path, tmp_path: Path
) -> None:
    options = {**RESUMABLE, "eval_data_path": images, "activation_checkpointing": True}
    assert main(arguments(clip_dir, images, tmp_path, **options)) == 0
    assert [line["loss"] for line in trained(tmp_path)] == pytest.approx([x["loss"] for x in trained(whole)], abs=1e-5)


def test_a_student_can_start_with_the_teachers_statistics(clip_dir: Path, images: Path, tmp_path: Path) -> None:
    """From three evenly spaced images; the loss may use deviations from their mean representation."""
    options = {"statistics_images": 3, "normalize_targets": "center", "match_tokens": True}
    task = make(arguments(clip_dir, images, tmp_path, **options)).task
    every = open_images(str(images), task.student.transform)
    chosen = torch.stack([every[index]["pixel_values"] for index in (0, 8 // 3, 16 // 3)])
    with task.teacher.recorded([-5]) as states, torch.no_grad():
        assert torch.allclose(task.pooled_targets.mean, task.teacher(chosen).mean(0), atol=1e-6)
    entering = (task.student(chosen).hidden_states[0], states[-5])
    rms = [tokens[:, 1:].square().mean().sqrt().item() for tokens in entering]
    assert rms[0] == pytest.approx(rms[1], rel=1e-3)
    plain = make(arguments(clip_dir, images, tmp_path)).task
    assert not plain.pooled_targets.mean.any()
    new = plain.student(chosen).hidden_states[0][:, 1:].square().mean().sqrt().item()
    assert new != pytest.approx(rms[1], rel=0.2)


@pytest.mark.slow
def test_frozen_weights_stay_and_the_others_move(clip_dir: Path, images: Path, tmp_path: Path) -> None:
    assert main(arguments(clip_dir, images, tmp_path / "out")) == 0
    student, teacher = SparseFormer.from_pretrained(tmp_path / "out"), open_teacher(str(clip_dir))
    for index, same in ((0, False), (3, True)):
        ours, theirs = student.cortex.trunk.blocks[index], teacher.trunk.blocks[index + 2]
        assert torch.equal(ours.attn.qkv.weight, theirs.attn.qkv.weight) == same


def test_each_tuned_block_has_its_rate(clip_dir: Path, images: Path, tmp_path: Path) -> None:
    """The block next to the frozen ones has the highest rate of all blocks, and new weights have the full rate."""
    options = {"layer_decay": 0.5, "tuned_lr_scale": 0.1, "drop_blocks": 1, "tune_blocks": 3, "freeze_blocks": 2}
    trainer = make(arguments(clip_dir, images, tmp_path, weight_decay=0.05, **options))
    rates = {group.name: group.learning_rate for group in trainer.groups}
    expected = {"new": 1e-3, "inherited block 0": 2.5e-5, "inherited block 1": 5e-5, "inherited block 2": 1e-4}
    assert {name: rate for name, rate in rates.items() if rate is not None} == pytest.approx(expected)
    table = (tmp_path / "parameter_groups.txt").read_text()
    assert "inherited block 1               198,272  5e-05" in table
    assert "inherited, frozen" in table
    student = trainer.task.student
    groups = trainer.create_optimizer().param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decay[id(student.stem.conv.weight)] == decay[id(student.cortex.trunk.blocks[0].mlp.fc1.weight)] == 0.05
    for parameter in (student.focus.initial_rois.weight, student.cortex.cls_embedding, student.stem.conv.bias):
        assert decay[id(parameter)] == 0


@pytest.mark.slow
def test_the_published_weights_are_the_moving_average(clip_dir: Path, images: Path, tmp_path: Path) -> None:
    """Compare with an explicit average: after step n the decay is min(0.6, 1 − n^(−2/3)), and 0 after step 1."""
    command = arguments(clip_dir, images, tmp_path / "by hand", max_steps=5)
    trainer, history = make(command), []

    class Remember(TrainerCallback):
        def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
            state_dict = trainer.task.student.state_dict()
            history.append({name: value.clone() for name, value in state_dict.items()})

    trainer.add_callback(Remember())
    trainer.train()
    average = history[0]
    for step, present in enumerate(history[1:], start=2):
        decay = min(0.6, 1 - step ** (-2 / 3))
        average = {name: decay * average[name] + (1 - decay) * value for name, value in present.items()}
    out = tmp_path / "out"
    assert main(arguments(clip_dir, images, out, max_steps=5, ema_decay=0.6, eval_data_path=images)) == 0
    published = weights(out)
    assert published.keys() == average.keys()
    for name, value in published.items():
        torch.testing.assert_close(value, average[name], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(published["stem.conv.weight"], history[-1]["stem.conv.weight"], atol=1e-6)
    alignment = json.loads((out / "alignment.json").read_text())
    assert alignment["weights"] == "the moving average (decay 0.6) of step 5"


@pytest.mark.slow
def test_the_best_checkpoint_is_published(clip_dir: Path, images: Path, tmp_path: Path) -> None:
    """The learning rate is so high that the alignment falls between evaluations."""
    options = {"learning_rate": 0.05, "lr_scheduler_type": "constant", "ema_decay": 0.3, "max_steps": 6}
    options |= {"eval_data_path": images, "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}
    assert main(arguments(clip_dir, images, tmp_path, **options)) == 0
    cosines = {int(line["step"]): line["eval_cosine"] for line in evaluated(tmp_path)}
    best = max(cosines, key=cosines.__getitem__)
    assert best < 6
    alignment = json.loads((tmp_path / "alignment.json").read_text())
    assert alignment["weights"] == f"the moving average (decay 0.3) of step {best} (best alignment)"
    assert alignment["alignment_cosine"] == pytest.approx(cosines[best], abs=1e-5)


@pytest.mark.slow
def test_accumulated_batches_are_one_batch(clip_dir: Path, images: Path, whole: Path, tmp_path: Path) -> None:
    """Two batches of 2 against one of 4, with clipping; sums have another order."""
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    assert main(arguments(clip_dir, images, tmp_path, eval_data_path=images, **RESUMABLE, **options)) == 0
    assert [line["loss"] for line in trained(tmp_path)] == pytest.approx([x["loss"] for x in trained(whole)], abs=1e-4)
    assert all(line["grad_norm"] > 1 for line in trained(tmp_path))  # transformers clips to 1


def test_collapsed_rois_are_reported(
    clip_dir: Path, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make(arguments(clip_dir, images, tmp_path, eval_data_path=images))
    assert 0.3 < trainer.measure()["roi_spread"] < 0.4
    assert "collapsed" not in caplog.text
    with torch.no_grad():
        trainer.task.student.focus.initial_rois.weight.copy_(torch.tensor([0.4, 0.4, 0.6, 0.6]))
    assert trainer.measure()["roi_spread"] < 0.01
    assert "The RoIs have collapsed at step 0: all tokens sample one place" in caplog.text


@pytest.mark.slow
def test_unreadable_images_are_counted(clip_dir: Path, images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "images")
    (tmp_path / "images/0/broken.png").write_bytes(b"\x89PNG nothing more")
    command = arguments(clip_dir, tmp_path / "images", tmp_path / "out", on_bad_image="skip", max_steps=3)
    assert main(command) == 0
    assert trained(tmp_path / "out")[-1]["unreadable_images"] == 1


def test_the_teacher_computes_in_the_stages_precision(clip_dir: Path, images: Path, tmp_path: Path) -> None:
    for options, dtype in (
        ({"bf16": True}, torch.bfloat16),
        ({"bf16": False}, torch.float32),
        ({"bf16": True, "teacher_dtype": "float32"}, torch.float32),
        ({"bf16": False, "teacher_dtype": "bfloat16"}, torch.bfloat16),
    ):
        task = make(arguments(clip_dir, images, tmp_path, **options)).task
        assert {weight.dtype for weight in task.teacher.trunk.parameters()} == {dtype}
        assert {weight.dtype for weight in task.student.parameters()} == {torch.float32}
