"""Short runs of train.finetune: command lines, and a callback that stops a run."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from train.finetune import make_trainer
from train.stages.arguments import StageArguments
from train.stages.command_line import parse_arguments
from train.vision.finetune_arguments import FinetuneArguments
from train.vision.finetune_trainer import FinetuneTrainer

CLASSES = ("black", "blue", "red", "white")  # of the fixture class_folders


def words(encoder_dir: Path, folders: Path, out: Path, **extra: Any) -> list[str]:
    """Return the command line of a short run on the CPU."""
    fixed: dict[str, Any] = {
        "encoder": encoder_dir,
        "data_path": folders,
        "output_dir": out,
        "learning_rate": 5e-3,
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "rand_augment_ops": 0,
    }
    return [word for name, value in (fixed | extra).items() for word in (f"--{name}", str(value))]


def make(command: list[str]) -> FinetuneTrainer:
    """Return the trainer of a command line."""
    arguments, args = parse_arguments((FinetuneArguments, StageArguments), command)
    return make_trainer(arguments, args)


class StopAt(TrainerCallback):
    """Save and stop after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_save = control.should_training_stop = state.global_step == self.step
