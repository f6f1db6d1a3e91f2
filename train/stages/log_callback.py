"""The callback that writes a training stage's log."""

import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sparse_vlm.files import write_text
from train.stages.log import log_line, read_log


class JsonlLog(TrainerCallback):
    """Write one line per logged step and one per evaluation.

    A step has step, loss, lr (of the first group), grad_norm, whatever else the trainer logs with the loss, and the
    seconds of training so far. An evaluation has step, its metrics (eval_…) and seconds. Numbers that are not finite
    are written as null.

    A resumed run drops the lines after its checkpoint, so the file reads like one uninterrupted run.

    Args:
        path: the JSONL file. Only the main process writes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.start = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        lines = read_log(self.path) if self.path.exists() else []
        lines = [line for line in lines if line["step"] <= state.global_step]
        self.start = time.monotonic() - (lines[-1]["seconds"] if lines else 0.0)
        if state.is_world_process_zero:
            write_text(self.path, "".join(map(log_line, lines)))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if not state.is_world_process_zero or logs is None:
            return
        if "loss" in logs:
            line = {"step": state.global_step, "loss": logs["loss"], "lr": logs["learning_rate"]}
            line |= {name: value for name, value in logs.items() if name not in ("loss", "learning_rate", "epoch")}
        elif any(name.startswith("eval_") for name in logs):
            line = {"step": state.global_step} | {name: value for name, value in logs.items() if name != "epoch"}
        else:
            return
        line["seconds"] = round(time.monotonic() - self.start, 3)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(log_line(line))
