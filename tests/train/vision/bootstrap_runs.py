"""Short bootstraps on the CPU: command lines and results."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import set_seed

from train.bootstrap import make_task, make_trainer
from train.stages.command_line import parse_arguments
from train.stages.log import read_log
from train.stages.precision import compute_dtype
from train.vision.bootstrap_arguments import ARGUMENTS
from train.vision.bootstrap_trainer import BootstrapTrainer

Line = dict[str, float]
# Epochs of the eight images have two steps, so checkpoint 3 lies within one.
RESUMABLE: dict[str, Any] = {"max_steps": 5, "save_steps": 2, "ema_decay": 0.9, "eval_steps": 1}


def arguments(teacher: Path, images: Path | str, out: Path, **options: Any) -> list[str]:
    """Return the command line of a short run."""
    values = {
        "teacher": teacher,
        "data_path": images,
        "output_dir": out,
        "tokens": 4,
        "focus_repeats": 2,
        "stem_channels": 8,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "max_steps": 4,
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return flags({**values, **options})


def measuring(teacher: Path, images: Path, held_out: Path | str, out: Path, **options: Any) -> list[str]:
    """Return the command line of a run with evaluations and two classes that skips unreadable images."""
    names = out.parent / "names.txt"
    names.write_text("cat\ndog\n")
    places = {"eval_data_path": held_out, "class_names": names, "on_bad_image": "skip"}
    return arguments(teacher, images, out, **places, **options)


def flags(values: dict[str, Any]) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def trained(out: Path) -> list[Line]:
    """Return the log's lines of training steps, without timings."""
    lines = [line for line in read_log(out / "log.jsonl") if "loss" in line]
    return [{name: line[name] for name in line if name not in ("seconds", "images_per_second")} for line in lines]


def evaluated(out: Path) -> list[Line]:
    lines = [line for line in read_log(out / "log.jsonl") if "eval_cosine" in line]
    return [{name: line[name] for name in line if name != "seconds"} for line in lines]


def weights(out: Path) -> dict[str, Tensor]:
    return load_file(out / "model.safetensors")


def assert_same(out: Path, whole: Path) -> None:
    """Assert that curve, evaluations and weights are equal bit for bit."""
    assert trained(out) == trained(whole)
    assert evaluated(out) == evaluated(whole)
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(out).items())


def make(command: list[str]) -> BootstrapTrainer:
    """Return the trainer of a command line, with the student that the run would have."""
    student, sources, objective, args = parse_arguments(ARGUMENTS, command)
    set_seed(args.seed)
    return make_trainer(*make_task(student, sources, objective, compute_dtype(args)), student, sources, args)
