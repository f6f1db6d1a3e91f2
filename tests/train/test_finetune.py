"""train/finetune.py: an encoder learns classes and opens again; one label and several; resume; errors are sentences."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sparse_vlm.encoder import SparseFormer, SparseFormerConfig
from sparse_vlm.timm_models import create_from_directory
from tests.train.launch import deepspeed
from train.arguments import parse_arguments
from train.finetune import FinetuneTask, FinetuneTrainer, main, make_trainer, parts_of
from train.finetune_arguments import FinetuneArguments
from train.log import read_log
from train.stage import run
from train.stage_arguments import StageArguments

COLOURS = ("black", "blue", "red", "white")


@pytest.fixture(scope="module")
def encoder_dir(tmp_path_factory: pytest.TempPathFactory, tiny_config: SparseFormerConfig) -> Path:
    directory = tmp_path_factory.mktemp("encoder") / "encoder"
    torch.manual_seed(0)
    preprocessing = replace(tiny_config.preprocessing, resize=32, crop=32)
    SparseFormer(replace(tiny_config, preprocessing=preprocessing)).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four folders of one-coloured pictures, and labels.csv: is there red in it, is there blue, is it a picture."""
    folder = tmp_path_factory.mktemp("folders")
    rows = ["image,reddish,bluish,picture"]
    for colour in COLOURS:
        (folder / colour).mkdir()
        for width in (20, 30):
            Image.new("RGB", (width, 24), colour).save(folder / colour / f"{width}.png")
            rows.append(f"{colour}/{width}.png,{int(colour in ('red', 'white'))},{int(colour in ('blue', 'white'))},1")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


def words(encoder_dir: Path, folders: Path, out: Path, **extra: Any) -> list[str]:
    fixed: dict[str, Any] = {
        "encoder": encoder_dir,
        "data_path": folders,
        "output_dir": out,
        "learning_rate": 5e-3,
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "rand_augment_ops": 0,
    }
    return [word for name, value in (fixed | extra).items() for word in (f"--{name}", str(value))]


def test_it_learns_and_opens_again(encoder_dir: Path, folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(words(encoder_dir, folders, out, max_steps=30, eval_data_path=folders, layer_decay=0.9)) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics == {"top1": 1.0, "images": 8}
    assert json.loads((out / "classes.json").read_text()) == {"classes": list(COLOURS), "several_per_image": False}
    encoder = SparseFormer.from_pretrained(out)
    pictures = torch.stack([encoder.transform(Image.new("RGB", (30, 24), colour)) for colour in COLOURS])
    assert encoder(pictures).pooled.argmax(-1).tolist() == [0, 1, 2, 3]
    assert "drop_path_rate" not in encoder.config.cortex.options
    assert len(read_log(out / "log.jsonl")) >= 30


def test_several_labels(encoder_dir: Path, folders: Path, tmp_path: Path) -> None:
    out, table = tmp_path / "out", folders / "labels.csv"
    arguments = words(encoder_dir, folders, out, label_file=table, eval_data_path=folders, eval_label_file=table)
    assert main([*arguments, "--max_steps", "30", "--smoothing", "0.05"]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics.keys() == {"auroc", "auroc_reddish", "auroc_bluish", "auroc_picture", "images"}
    assert metrics["auroc_picture"] is None
    assert metrics["auroc"] == (metrics["auroc_reddish"] + metrics["auroc_bluish"]) / 2
    assert metrics["auroc"] > 0.95
    assert json.loads((out / "classes.json").read_text())["several_per_image"] is True


def make(command: list[str]) -> FinetuneTrainer:
    """The trainer of a command line."""
    arguments, args = parse_arguments((FinetuneArguments, StageArguments), command)
    return make_trainer(arguments, args)


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_save = control.should_training_stop = state.global_step == self.step


def curve(out: Path) -> list[tuple[float, float]]:
    return [(line["step"], line["loss"]) for line in read_log(out / "log.jsonl") if "loss" in line]


def test_a_resumed_run_has_the_same_curve(encoder_dir: Path, folders: Path, tmp_path: Path) -> None:
    extra = {"rand_augment_ops": 2, "mixup": 0.8, "cutmix": 1.0, "reprob": 0.5, "dataloader_drop_last": True}
    curves = []
    for name, steps in (("whole", ()), ("halves", (3,))):
        out = tmp_path / name
        for stop in (*steps, None):
            torch.manual_seed(0)
            trainer = make(words(encoder_dir, folders, out, max_steps=5, **extra))
            if stop is not None:
                trainer.add_callback(StopAt(stop))
            run(trainer)
        curves.append(curve(out))
    assert curves[0] == curves[1]
    assert [step for step, _ in curves[0]] == [1, 2, 3, 4, 5]


def test_data_seed_is_the_order_of_the_images_alone(encoder_dir: Path, folders: Path, tmp_path: Path) -> None:
    def order(**seeds: int) -> list[list[int]]:
        trainer = make(words(encoder_dir, folders, tmp_path, **seeds))
        return [batch["labels"].tolist() for batch in trainer.get_train_dataloader()]

    assert order(seed=1, data_seed=7) == order(seed=2, data_seed=7) == order(seed=7)
    assert order(seed=1, data_seed=7) != order(seed=1, data_seed=8)


def test_unreadable_images_are_counted(encoder_dir: Path, folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders, tmp_path / "data")
    (tmp_path / "data/red/broken.png").write_bytes(b"\x89PNG nothing more")
    command = words(encoder_dir, tmp_path / "data", tmp_path / "out", on_bad_image="skip", max_steps=3)
    assert main(command) == 0
    assert [line["unreadable_images"] for line in read_log(tmp_path / "out/log.jsonl")][-1] == 1  # of 9, in 3 batches


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated")
@pytest.mark.parametrize("flag", ["activation_checkpointing", "gradient_checkpointing"])
def test_checkpointed_activations_give_the_same_curve(
    flag: str, encoder_dir: Path, folders: Path, tmp_path: Path
) -> None:
    """With dropped paths, which the second pass must drop again."""
    curves = []
    for name, more in (("kept", {}), ("again", {flag: True})):
        assert main(words(encoder_dir, folders, tmp_path / name, drop_path=0.5, max_steps=2, **more)) == 0
        curves.append([loss for _, loss in curve(tmp_path / name)])
    assert curves[1] == pytest.approx(curves[0], abs=1e-5)


@pytest.mark.slow
def test_deepspeed_follows_a_plain_run(encoder_dir: Path, folders: Path, tmp_path: Path) -> None:
    options = {"max_steps": 3, "drop_path": 0.0, "eval_data_path": folders}
    assert main(words(encoder_dir, folders, tmp_path / "plain", **options)) == 0
    command = words(encoder_dir, folders, tmp_path / "zero2", deepspeed="train/zero2.json", **options)
    deepspeed("train/finetune.py", command, 1)
    curves = [[loss for _, loss in curve(tmp_path / name)] for name in ("plain", "zero2")]
    assert curves[1] == pytest.approx(curves[0], abs=1e-4)
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("plain", "zero2")]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("change", ["added", "swapped"])
def test_other_classes_than_the_checkpoints_are_a_sentence(
    change: str, encoder_dir: Path, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A swapped one would fit the head, and its images would be learnt as those of another class."""
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(folders, data)
    trainer = make(words(encoder_dir, data, out, save_steps=1))
    trainer.add_callback(StopAt(1))
    run(trainer)
    if change == "added":
        shutil.copytree(data / "red", data / "green")
    else:
        (data / "white").rename(data / "green")
    assert main(words(encoder_dir, data, out)) == 2
    found = "'black', 'blue', 'green', 'red'"
    sentence = f"another variant: its classes is ['black', 'blue', 'red', 'white'], this run's [{found}"
    assert sentence in capsys.readouterr().err


def test_layers_have_falling_rates(encoder_dir: Path) -> None:
    model = create_from_directory(encoder_dir)
    parts = parts_of(model, 1.0, 0.5)
    assert [part.name for part in parts] == ["layer 0", "layer 1", "layer 2", "layer 3", "head"]
    assert [part.learning_rate for part in parts] == [0.5**4, 0.5**3, 0.5**2, 0.5, 1.0]
    assert parts[-1].parameters == tuple(model.get_classifier().parameters())


def test_smoothing_and_mixing_are_for_training_only(encoder_dir: Path) -> None:
    model = create_from_directory(encoder_dir, num_classes=3)
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


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ({"encoder": "nowhere"}, "There is no encoder directory nowhere"),
        ({"data_path": "nowhere"}, "There is no folder nowhere with a folder of images per class"),
        (
            {"eval_data_path": "{}", "eval_label_file": "{}/labels.csv"},
            "--label_file and --eval_label_file go together",
        ),
        ({"label_file": "{}/labels.csv", "mixup": 0.5}, "--mixup and --cutmix are for one class per image"),
        ({"mixup": 0.5}, "give an even --per_device_train_batch_size (it is 4) and --dataloader_drop_last True"),
        ({"on_bad_image": "ignore"}, "Unknown --on_bad_image 'ignore'"),
        ({"eval_strategy": "epoch"}, "Evaluation while training needs held-out images: give --eval_data_path"),
        ({"drop_path": 1}, "--drop_path must lie in [0, 1), got 1."),
        ({"layer_dekay": 0.5}, "Unknown argument 'layer_dekay'. Did you mean 'layer_decay'"),
    ],
)
def test_bad_input_is_one_sentence(
    extra: dict[str, Any],
    sentence: str,
    encoder_dir: Path,
    folders: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    filled = {name: str(value).format(folders) for name, value in extra.items()}
    assert main(words(encoder_dir, folders, tmp_path / "out", **filled)) == 2
    assert sentence in capsys.readouterr().err


def test_other_classes_held_out(
    encoder_dir: Path, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for colour in ("red", "green"):
        (tmp_path / "other" / colour).mkdir(parents=True)
        Image.new("RGB", (9, 9), colour).save(tmp_path / "other" / colour / "a.png")
    assert main(words(encoder_dir, folders, tmp_path / "out", eval_data_path=tmp_path / "other")) == 2
    assert "The held-out images have the classes green, red, those to train on black, blue" in capsys.readouterr().err


@pytest.mark.usefixtures("zero3")
def test_zero3_is_refused(encoder_dir: Path, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(encoder_dir, folders, tmp_path / "out")) == 2
    assert "use train/zero2.json, not ZeRO-3" in capsys.readouterr().err
