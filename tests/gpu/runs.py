"""Short runs of the stages, and their losses."""

from pathlib import Path

from tests.train import bootstrap_runs, test_align
from train import align, bootstrap, instruct
from train.log import read_log

STEPS = 4
LORA = {"lora_enable": True, "lora_r": 4, "lora_alpha": 8}


def losses(out: Path) -> list[float]:
    """Of every step."""
    return [line["loss"] for line in read_log(out / "log.jsonl") if "loss" in line]


def placed(device: str, *, bf16: bool) -> dict[str, object]:
    """The arguments that say where a stage runs, and in what."""
    return {"use_cpu": device == "cpu", "bf16": bf16, "max_steps": STEPS, "save_strategy": "no"}


def bootstrapped(teacher: Path, images: Path, out: Path, **options: object) -> list[float]:
    assert bootstrap.main(bootstrap_runs.arguments(teacher, images, out, **options)) == 0
    return losses(out)


def aligned(vlm: Path, data: Path, out: Path, **options: object) -> list[float]:
    options = {"learning_rate": 1e-3, **options}
    assert align.main(test_align.flags(vlm, data, out, **options)) == 0
    return losses(out)


def instructed(vlm: Path, data: Path, out: Path, **options: object) -> list[float]:
    options = {"data_path": data / "chats.json", "learning_rate": 1e-3, **options}
    assert instruct.main(test_align.flags(vlm, data, out, **options)) == 0
    return losses(out)
