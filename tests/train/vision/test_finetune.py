"""train.finetune: an encoder learns one or several labels per image, opens again, and resumes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sparse_vlm.encoder import SparseFormer
from sparse_vlm.integrations.timm import create_from_directory
from tests.train.launch import forked
from tests.train.vision.finetune_runs import CLASSES, StopAt, make, words
from train.finetune import layer_groups, main
from train.stages.log import read_log
from train.stages.stage import run
from train.vision.finetune_trainer import FinetuneTask


@pytest.mark.slow
def test_it_learns_and_opens_again(small_encoder_dir: Path, class_folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert (
        main(words(small_encoder_dir, class_folders, out, max_steps=30, eval_data_path=class_folders, layer_decay=0.9))
        == 0
    )
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics == {"top1": 1.0, "images": 8, "unreadable": 0}
    assert json.loads((out / "classes.json").read_text()) == {"classes": list(CLASSES), "several_per_image": False}
    encoder = SparseFormer.from_pretrained(out)
    images = torch.stack([encoder.transform(Image.new("RGB", (30, 24), colour)) for colour in CLASSES])
    assert encoder(images).pooled.argmax(-1).tolist() == [0, 1, 2, 3]
    assert "drop_path_rate" not in encoder.config.cortex.options
    assert len(read_log(out / "log.jsonl")) >= 30


@pytest.mark.slow
def test_an_evaluation_in_bf16_does_not_change_the_result(
    small_encoder_dir: Path, class_folders: Path, tmp_path: Path
) -> None:
    for out, full in ((tmp_path / "plain", False), (tmp_path / "bf16", True)):
        options = {"max_steps": 2, "eval_data_path": class_folders, "bf16_full_eval": full}
        assert main(words(small_encoder_dir, class_folders, out, **options)) == 0
    plain, bf16 = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "bf16"))
    assert {weight.dtype for weight in bf16.values()} == {torch.float32}
    assert all(torch.equal(plain[name], bf16[name]) for name in plain)


@pytest.mark.slow
def test_several_labels(small_encoder_dir: Path, class_folders: Path, tmp_path: Path) -> None:
    out, table = tmp_path / "out", class_folders / "labels.csv"
    arguments = words(
        small_encoder_dir, class_folders, out, label_file=table, eval_data_path=class_folders, eval_label_file=table
    )
    assert main([*arguments, "--max_steps", "30", "--smoothing", "0.05"]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    classes = {"auroc_reddish", "auroc_bluish", "auroc_always"}
    assert metrics.keys() == {"auroc", "classes_with_auroc", *classes, "images", "unreadable"}
    assert metrics["classes_with_auroc"] == 2
    assert metrics["auroc_always"] is None
    assert metrics["auroc"] == (metrics["auroc_reddish"] + metrics["auroc_bluish"]) / 2
    assert metrics["auroc"] > 0.95
    assert json.loads((out / "classes.json").read_text())["several_per_image"] is True


@pytest.mark.slow
def test_the_result_is_measured_on_test_images(small_encoder_dir: Path, class_folders: Path, tmp_path: Path) -> None:
    """They have no positive of one class and an unreadable image, and are not those of the evaluations."""
    test, table = tmp_path / "test", class_folders / "labels.csv"
    shutil.copytree(class_folders, test)
    (test / "black/30.png").write_bytes(b"no image")
    rows = table.read_text().splitlines()
    (test / "labels.csv").write_text("\n".join(row for row in rows if not row.startswith(("red", "white"))) + "\n")
    out = tmp_path / "out"
    options = {"label_file": table, "eval_data_path": class_folders, "eval_label_file": table}
    options |= {"test_data_path": test, "test_label_file": test / "labels.csv", "on_bad_image": "skip"}
    options |= {"eval_strategy": "epoch", "dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    assert main(words(small_encoder_dir, class_folders, out, **options)) == 0
    held_out = json.loads((out / "metrics.json").read_text())
    measured = json.loads((out / "test_metrics.json").read_text())
    assert (held_out["images"], held_out["unreadable"], held_out["classes_with_auroc"]) == (8, 0, 2)
    assert (measured["images"], measured["unreadable"], measured["classes_with_auroc"]) == (3, 1, 1)
    assert measured["auroc_reddish"] is measured["auroc_always"] is None
    assert measured["auroc"] == measured["auroc_bluish"]


def curve(out: Path) -> list[tuple[float, float]]:
    return [(line["step"], line["loss"]) for line in read_log(out / "log.jsonl") if "loss" in line]


@pytest.mark.slow
def test_a_resumed_run_has_the_same_curve(small_encoder_dir: Path, class_folders: Path, tmp_path: Path) -> None:
    extra = {"rand_augment_ops": 2, "mixup": 0.8, "cutmix": 1.0, "reprob": 0.5, "dataloader_drop_last": True}
    curves = []
    for name, steps in (("whole", ()), ("halves", (3,))):
        out = tmp_path / name
        for stop in (*steps, None):
            torch.manual_seed(0)
            trainer = make(words(small_encoder_dir, class_folders, out, max_steps=5, **extra))
            if stop is not None:
                trainer.add_callback(StopAt(stop))
            run(trainer)
        curves.append(curve(out))
    assert curves[0] == curves[1]
    assert [step for step, _ in curves[0]] == [1, 2, 3, 4, 5]


def test_data_seed_affects_only_the_order_of_the_images(
    small_encoder_dir: Path, class_folders: Path, tmp_path: Path
) -> None:
    def order(**seeds: int) -> list[list[int]]:
        trainer = make(words(small_encoder_dir, class_folders, tmp_path, **seeds))
        return [batch["labels"].tolist() for batch in trainer.get_train_dataloader()]

    assert order(seed=1, data_seed=7) == order(seed=2, data_seed=7) == order(seed=7)
    assert order(seed=1, data_seed=7) != order(seed=1, data_seed=8)


@pytest.mark.slow
def test_unreadable_images_are_counted(small_encoder_dir: Path, class_folders: Path, tmp_path: Path) -> None:
    shutil.copytree(class_folders, tmp_path / "data")
    (tmp_path / "data/red/broken.png").write_bytes(b"\x89PNG nothing more")
    command = words(small_encoder_dir, tmp_path / "data", tmp_path / "out", on_bad_image="skip", max_steps=3)
    assert main(command) == 0
    assert [line["unreadable_images"] for line in read_log(tmp_path / "out/log.jsonl")][-1] == 1  # of 9, in 3 batches


@pytest.mark.parametrize("several", [False, True])
def test_unreadable_held_out_images_are_excluded(
    several: bool, small_encoder_dir: Path, class_folders: Path, tmp_path: Path
) -> None:
    """Loss and metric are those of the readable images alone, for any batch size."""
    damaged, bad = tmp_path / "damaged", "black/25.png"
    shutil.copytree(class_folders, damaged)
    (damaged / bad).write_bytes(b"\x89PNG nothing more")
    (damaged / "labels.csv").write_text((damaged / "labels.csv").read_text() + f"{bad},1,0,1\n")

    def evaluated(held_out: Path, batch_size: int) -> dict[str, float]:
        options = {"eval_data_path": held_out, "per_device_eval_batch_size": batch_size, "on_bad_image": "skip"}
        if several:
            options |= {"label_file": class_folders / "labels.csv", "eval_label_file": held_out / "labels.csv"}
        torch.manual_seed(0)
        found = make(words(small_encoder_dir, class_folders, tmp_path / "out", **options)).evaluate()
        timing = ("eval_runtime", "per_second", "preparation_time")
        return {name: value for name, value in found.items() if not name.endswith(timing)}

    expected = evaluated(class_folders, 8)
    assert expected["eval_images"] == 8
    for batch_size in (1, 4, 9):
        assert evaluated(damaged, batch_size) == pytest.approx(expected | {"eval_unreadable": 1}, abs=1e-5)


@pytest.mark.slow
def test_metrics_count_unreadable_images(
    small_encoder_dir: Path, class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = tmp_path / "held out"
    shutil.copytree(class_folders, held_out)
    (held_out / "red/20.png").write_bytes(b"no image")
    options = {"eval_data_path": held_out, "on_bad_image": "skip", "eval_strategy": "epoch", "max_steps": 2}
    assert main(words(small_encoder_dir, class_folders, tmp_path / "out", **options)) == 0
    assert json.loads((tmp_path / "out/metrics.json").read_text()).items() >= {"images": 7, "unreadable": 1}.items()
    lines = [line for line in read_log(tmp_path / "out/log.jsonl") if "eval_loss" in line]
    assert [(line["eval_images"], line["eval_unreadable"]) for line in lines] == [(7, 1)] * 2
    for file in held_out.rglob("*.png"):
        file.write_bytes(b"no image")
    assert main(words(small_encoder_dir, class_folders, tmp_path / "none", **options)) == 2
    assert "None of the 8 held-out images (--eval_data_path) can be read." in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated")
@pytest.mark.parametrize("flag", ["activation_checkpointing", "gradient_checkpointing"])
def test_checkpointed_activations_give_the_same_curve(
    flag: str, small_encoder_dir: Path, class_folders: Path, tmp_path: Path
) -> None:
    """With stochastic depth, which the second pass must repeat."""
    curves = []
    for name, more in (("kept", {}), ("again", {flag: True})):
        assert main(words(small_encoder_dir, class_folders, tmp_path / name, drop_path=0.5, max_steps=2, **more)) == 0
        curves.append([loss for _, loss in curve(tmp_path / name)])
    assert curves[1] == pytest.approx(curves[0], abs=1e-5)


@pytest.mark.slow
def test_deepspeed_follows_a_plain_run(small_encoder_dir: Path, class_folders: Path, tmp_path: Path) -> None:
    options = {"max_steps": 3, "drop_path": 0.0, "eval_data_path": class_folders}
    assert main(words(small_encoder_dir, class_folders, tmp_path / "plain", **options)) == 0
    command = words(
        small_encoder_dir, class_folders, tmp_path / "zero2", deepspeed="train/configs/deepspeed/zero2.json", **options
    )
    forked("train.finetune", command, 1)
    curves = [[loss for _, loss in curve(tmp_path / name)] for name in ("plain", "zero2")]
    assert curves[1] == pytest.approx(curves[0], abs=1e-4)
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("plain", "zero2")]
    assert metrics[0] == metrics[1]


def test_layers_have_falling_rates(small_encoder_dir: Path) -> None:
    model = create_from_directory(small_encoder_dir)
    parts = layer_groups(model, 1.0, 0.5)
    assert [part.name for part in parts] == ["layer 0", "layer 1", "layer 2", "layer 3", "head"]
    assert [part.learning_rate for part in parts] == [0.5**4, 0.5**3, 0.5**2, 0.5, 1.0]
    assert parts[-1].parameters == tuple(model.get_classifier().parameters())


def test_smoothing_and_mixing_are_for_training_only(small_encoder_dir: Path) -> None:
    model = create_from_directory(small_encoder_dir, num_classes=3)
    pixels, labels = torch.randn(2, 3, 32, 32), torch.tensor([0, 2])
    task = FinetuneTask(model, several=False, smoothing=0.5).eval()
    plain = task(pixels, labels)
    assert plain["loss"] == torch.nn.functional.cross_entropy(plain["logits"], labels)
    assert task.train()(pixels, labels)["loss"] != plain["loss"]
    several = FinetuneTask(model, several=True, smoothing=0.0)
    flags = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    output = several(pixels, flags)
    expected = -(flags * output["logits"].sigmoid().log() + (1 - flags) * (1 - output["logits"].sigmoid()).log()).mean()
    assert torch.allclose(output["loss"], expected, atol=1e-6)
