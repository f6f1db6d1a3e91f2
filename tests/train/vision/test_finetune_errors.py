"""train.finetune: bad input and classes that do not match are one-line errors."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sparse_vlm.errors import UserError
from tests.train.vision.finetune_runs import StopAt, make, words
from train.finetune import main
from train.stages.stage import run
from train.vision.finetune_arguments import FinetuneArguments
from train.vision.finetune_data import read_labels


@pytest.mark.slow
@pytest.mark.parametrize("change", ["added", "swapped"])
def test_classes_that_differ_from_the_checkpoint_are_a_one_line_error(
    change: str, small_encoder_dir: Path, class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A renamed class would fit the head, and its images would be learned as another class."""
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(class_folders, data)
    trainer = make(words(small_encoder_dir, data, out, save_steps=1))
    trainer.add_callback(StopAt(1))
    run(trainer)
    if change == "added":
        shutil.copytree(data / "red", data / "green")
    else:
        (data / "white").rename(data / "green")
    assert main(words(small_encoder_dir, data, out)) == 2
    found = "'black', 'blue', 'green', 'red'"
    message = f"another variant: its classes is ['black', 'blue', 'red', 'white'], this run's is [{found}"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"encoder": "nowhere"}, "There is no encoder directory nowhere"),
        ({"data_path": "nowhere"}, "There is no folder nowhere with a folder of images per class"),
        (
            {"eval_data_path": "{}", "eval_label_file": "{}/labels.csv"},
            "--label_file and --eval_label_file go together",
        ),
        (
            {"test_data_path": "{}", "test_label_file": "{}/labels.csv"},
            "--label_file and --test_label_file go together",
        ),
        (
            {"test_label_file": "{}/labels.csv"},
            "--test_label_file needs the folder of its images: give --test_data_path",
        ),
        (
            {"eval_label_file": "{}/labels.csv"},
            "--eval_label_file needs the folder of its images: give --eval_data_path",
        ),
        ({"label_file": "{}/labels.csv", "mixup": 0.5}, "--mixup and --cutmix are for one class per image"),
        ({"mixup": 0.5}, "give an even --per_device_train_batch_size (it is 4) and --dataloader_drop_last True"),
        ({"on_bad_image": "ignore"}, "Unknown --on_bad_image 'ignore'"),
        ({"eval_strategy": "epoch"}, "--eval_strategy epoch needs held-out data: give --eval_data_path"),
        ({"per_device_train_batch_size": 0}, "--per_device_train_batch_size must lie in [1, inf), got 0."),
        ({"gradient_accumulation_steps": 0}, "--gradient_accumulation_steps must lie in [1, inf), got 0."),
        ({"weight_decay": -1}, "--weight_decay must lie in [0, inf), got -1."),
        ({"drop_path": 1}, "--drop_path must lie in [0, 1), got 1."),
        ({"layer_dekay": 0.5}, "Unknown option --layer_dekay. Did you mean --layer_decay"),
    ],
)
def test_bad_input_is_a_one_line_error(
    extra: dict[str, Any],
    message: str,
    small_encoder_dir: Path,
    class_folders: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    filled = {name: str(value).format(class_folders) for name, value in extra.items()}
    assert main(words(small_encoder_dir, class_folders, tmp_path / "out", **filled)) == 2
    assert message in capsys.readouterr().err


SAME = "cannot be measured: all held-out images have the same label of"


@pytest.mark.parametrize(
    ("table", "metric", "message"),
    [
        (None, "top_1", "Unknown --metric_for_best_model 'top_1'. Did you mean 'top1'? Choices: loss, top1."),
        (((0, 1), (0, 0)), "auroc_reddish", f"--metric_for_best_model auroc_reddish {SAME} reddish."),
        (((0, 1), (0, 1)), "auroc", f"--metric_for_best_model auroc {SAME} each class."),
    ],
)
def test_the_metric_of_the_best_checkpoint_is_measured(
    table: tuple[tuple[int, int], ...] | None,
    metric: str,
    message: str,
    small_encoder_dir: Path,
    class_folders: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    extra: dict[str, Any] = {"eval_data_path": class_folders, "eval_strategy": "steps", "load_best_model_at_end": True}
    if table is not None:
        rows = [f"{colour}/20.png,{a},{b}\n" for colour, (a, b) in zip(("red", "blue"), table, strict=True)]
        (tmp_path / "labels.csv").write_text("".join(["image,reddish,bluish\n", *rows]))
        extra |= {"label_file": tmp_path / "labels.csv", "eval_label_file": tmp_path / "labels.csv"}
    command = words(small_encoder_dir, class_folders, tmp_path / "out", metric_for_best_model=metric, **extra)
    assert main(command) == 2
    assert message in capsys.readouterr().err


def test_held_out_classes_must_match(
    small_encoder_dir: Path, class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for colour in ("red", "green"):
        (tmp_path / "other" / colour).mkdir(parents=True)
        Image.new("RGB", (9, 9), colour).save(tmp_path / "other" / colour / "a.png")
    assert main(words(small_encoder_dir, class_folders, tmp_path / "out", eval_data_path=tmp_path / "other")) == 2
    assert "The held-out images have the classes green, red, the training images black, blue" in capsys.readouterr().err


def test_only_the_difference_of_many_classes_is_named(tmp_path: Path) -> None:
    for number in range(300):
        for part in ("train", "test"):
            if (part, number) != ("test", 7):
                (tmp_path / part / f"{number:03}").mkdir(parents=True)
                (tmp_path / part / f"{number:03}" / "a.png").touch()
    arguments = FinetuneArguments("encoder", str(tmp_path / "train"), eval_data_path=str(tmp_path / "test"))
    with pytest.raises(UserError) as raised:
        read_labels(arguments)
    assert str(raised.value) == (
        "The held-out images have the classes (none), the training images 007, which the other set lacks "
        "(299 and 300 classes in all)."
    )


@pytest.mark.slow
def test_a_bad_image_in_the_last_evaluation_is_a_one_line_error(
    small_encoder_dir: Path, class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The image is read in a worker process, after training."""
    held_out = tmp_path / "held out"
    shutil.copytree(class_folders, held_out)
    (held_out / "red/broken.png").write_bytes(b"\x89PNG nothing more")
    options = {"eval_data_path": held_out, "max_steps": 1, "dataloader_num_workers": 1}
    assert main(words(small_encoder_dir, class_folders, tmp_path / "out", **options)) == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    assert printed.splitlines()[-1].startswith(f"error: The image {held_out / 'red/broken.png'} cannot be read")


@pytest.mark.usefixtures("zero3")
def test_zero3_is_refused(
    small_encoder_dir: Path, class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(small_encoder_dir, class_folders, tmp_path / "out")) == 2
    assert "use train/configs/deepspeed/zero2.json, not ZeRO-3" in capsys.readouterr().err
