"""Write the result of a stage: the starting model directory with the trained weights."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from sparse_vlm.dtypes import DTYPES, convert
from sparse_vlm.errors import UserError, one_line
from sparse_vlm.files import check_output, new_directory
from sparse_vlm.model_directory import saved_dtype
from sparse_vlm.vlm.loading import check_opens, load_vlm

TRAINED_FILE = "trained.safetensors"


def write_result(
    start: str | Path,
    trained: str | Path,
    output_dir: str | Path,
    dtype: str | None = None,
    provenance: dict[str, Any] | None = None,
    *,
    visual_tokens: str | None = None,
    region_tokens: int | None = None,
    frame_tokens: int | None = None,
) -> None:
    """Write a model directory atomically, if it opens.

    Frozen weights are copied from `start` bit for bit, in whatever precision the stage stored them. An adapter is
    merged in float32.

    Args:
        start: the model directory that the stage started from.
        trained: a directory with TRAINED_FILE, or with an adapter as peft saves it.
        output_dir: the result; see `new_directory`.
        dtype: dtype of the result, a key of DTYPES; None: that of `start`.
        provenance: provenance for the result's card; None: that of `start`.
        visual_tokens: numbers of visual tokens per image that the stage trained with, in the notation of `TokenCounts`;
            None: the model's own.
        region_tokens: number of visual tokens per region; None: that of `start`.
        frame_tokens: number of visual tokens per frame of a video; None: that of `start`.

    Raises:
        UserError: a directory is missing, the trained weights do not fit, a value is too large for `dtype`, or the
            output would replace an input.
    """
    check_output(output_dir, start, trained)
    dtype = saved_dtype(start) if dtype is None else dtype
    model, processor = load_vlm(start, dtype=torch.float32)
    try:
        result: Any = _merged(model, Path(trained))
    except (KeyError, OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(f"The trained weights in {trained} do not fit {start}: {one_line(error)}") from error
    if provenance is not None:
        result.config.provenance = provenance
    result.config.trained_visual_tokens = visual_tokens
    processor.region_tokens = region_tokens or processor.region_tokens
    processor.frame_tokens = frame_tokens or processor.frame_tokens
    convert(result, DTYPES[dtype])
    with new_directory(output_dir) as temporary:
        result.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        check_opens(temporary)


def _merged(model: nn.Module, trained: Path) -> nn.Module:
    if not (trained / TRAINED_FILE).is_file():
        return PeftModel.from_pretrained(model, str(trained)).merge_and_unload()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in load_file(trained / TRAINED_FILE).items():
            parameters[name].copy_(value)
    return model
