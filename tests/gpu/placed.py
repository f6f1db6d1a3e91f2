"""Arguments and losses of short runs of a stage; imports nothing that only some stages need."""

from pathlib import Path

from train.stages.log import read_log

STEPS = 4
TOLERANCE = 0.03  # relative, of a loss after up to four steps in bf16; a CPU differed by 0.012


def losses(out: Path) -> list[float]:
    """Read the loss of every step."""
    return [line["loss"] for line in read_log(out / "log.jsonl") if "loss" in line]


def placed(device: str, *, bf16: bool) -> dict[str, object]:
    """Make the arguments for the device and dtype of a stage."""
    return {"use_cpu": device == "cpu", "bf16": bf16, "max_steps": STEPS, "save_strategy": "no"}
