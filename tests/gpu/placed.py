"""Where a stage runs, for how long, and what it said; imports nothing that only some stages need."""

from pathlib import Path

from train.stages.log import read_log

STEPS = 4
TOLERANCE = 0.03  # of a loss, after up to four steps in bf16; a CPU was seen to differ by 0.012


def losses(out: Path) -> list[float]:
    """Of every step."""
    return [line["loss"] for line in read_log(out / "log.jsonl") if "loss" in line]


def placed(device: str, *, bf16: bool) -> dict[str, object]:
    """The arguments that say where a stage runs, and in what."""
    return {"use_cpu": device == "cpu", "bf16": bf16, "max_steps": STEPS, "save_strategy": "no"}
