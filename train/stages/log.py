"""The log of a training stage: log.jsonl, a line per logged step or evaluation."""

import json
import math
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sparse_vlm.files import write_text

LOG_NAME = "log.jsonl"


class JsonlLog(TrainerCallback):
    """One line per logged step: step, loss, lr (of the first group), grad_norm, what else the trainer logs beside the
    loss, seconds of training so far. An evaluation is a line of its own: step, its metrics (eval_…), seconds. A number
    that is not finite is null.

    A resumed run drops the lines after its checkpoint and goes on, so the file reads like one uninterrupted run.

    Args:
        path: of the JSONL file; only the main process writes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.start = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        lines = read_log(self.path) if self.path.exists() else []
        lines = [line for line in lines if line["step"] <= state.global_step]
        self.start = time.monotonic() - (lines[-1]["seconds"] if lines else 0.0)
        if state.is_world_process_zero:
            write_text(self.path, "".join(map(_line, lines)))

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
            file.write(_line(line))


def _line(values: dict[str, Any]) -> str:
    """JSON has neither NaN nor infinity (with --fp16, the grad_norm of a step that is left out): null."""
    numbers = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}
    return json.dumps(numbers, allow_nan=False) + "\n"


def read_log(path: str | Path) -> list[dict[str, float]]:
    """The lines of a stage's log.jsonl; a last line cut short by a crash is left out."""
    *lines, _cut_short = Path(path).read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines]
