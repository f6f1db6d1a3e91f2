"""Find the complete checkpoints of an output directory."""

import json
import logging
import shutil
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

logger = logging.getLogger(__name__)


def all_checkpoints(output_dir: str | Path) -> list[Path]:
    """Return every `checkpoint-N` of an output directory, complete or not."""
    return list(Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"))


def last_checkpoint(output_dir: str | Path) -> Path | None:
    """Return the newest complete `checkpoint-N`, or None. The trainer's state, written last, marks it as complete."""
    found = [(_step_of(path), path) for path in all_checkpoints(output_dir)]
    complete = [(step, path) for step, path in found if step is not None]
    return max(complete)[1] if complete else None


def remove_incomplete(output_dir: str | Path) -> None:
    """Remove each `checkpoint-N` that a crash cut short: the trainer would count it as one of those to keep."""
    for path in all_checkpoints(output_dir):
        if _step_of(path) is None:
            logger.warning("Removing the incomplete checkpoint %s", path)
            shutil.rmtree(path)


def _step_of(checkpoint: Path) -> int | None:
    """Return the step of a complete checkpoint, or None if it was cut short."""
    try:
        return json.loads((checkpoint / TRAINER_STATE_NAME).read_text())["global_step"]
    except (OSError, ValueError):
        return None
