"""The log of a training stage: log.jsonl, one line per logged step or evaluation."""

import json
import math
from pathlib import Path
from typing import Any

LOG_NAME = "log.jsonl"


def log_line(values: dict[str, Any]) -> str:
    """Return a line of the log. JSON has neither NaN nor infinity (the grad_norm of a step that --fp16 skips): null."""
    numbers = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}
    return json.dumps(numbers, allow_nan=False) + "\n"


def read_log(path: str | Path) -> list[dict[str, float]]:
    """Return the lines of a stage's log.jsonl, without a last line that a crash cut short."""
    *lines, _cut_short = Path(path).read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines]
