"""Short runs of the training stages of a VLM, and their losses."""

from pathlib import Path

from tests.gpu.placed import losses
from tests.train.language.test_align import flags
from train import align, instruct

LORA = {"lora_enable": True, "lora_r": 4, "lora_alpha": 8}


def aligned(vlm: Path, data: Path, out: Path, **options: object) -> list[float]:
    """Run an alignment and return its losses. At a rate of 1e-3 they depend on the last bit of every product."""
    assert align.main(flags(vlm, data, out, **{"learning_rate": 3e-4, **options})) == 0
    return losses(out)


def instructed(vlm: Path, data: Path, out: Path, **options: object) -> list[float]:
    """Run instruction tuning and return its losses."""
    options = {"data_path": data / "chats.json", "learning_rate": 1e-3, **options}
    assert instruct.main(flags(vlm, data, out, **options)) == 0
    return losses(out)
