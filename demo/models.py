"""Opening what is talked to: a model directory of ours, or of any image-text-to-text model of transformers."""

from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, AutoProcessor

from sparse_vlm.errors import UserError, one_line
from sparse_vlm.model_directory import read_config, short_name
from sparse_vlm.vlm.language.quantization import keep_four_bit_layout, quantization
from sparse_vlm.vlm.loading import load_vlm
from sparse_vlm.vlm.modeling import SparseVLMConfig

# What keeps its precision in a model of transformers, whatever it calls its vision tower and projector.
WHOLE = [r"(.*\.)?(vision\w*|visual|multi_modal_projector|connector)", "lm_head"]


@dataclass(frozen=True)
class OpenModel:
    """A model to talk to.

    Attributes:
        name: the last two parts of its path, as stages and runs tend to be called "model".
        model: in eval mode.
        processor: its own.
        lock: held while it computes: hooks and its attention's kind are the model's, not the visitor's.
    """

    name: str
    model: Any
    processor: Any
    lock: Lock = field(default_factory=Lock, repr=False)

    @property
    def weight_bytes(self) -> int:
        """Memory of its weights, shared ones counted once."""
        return self.model.get_memory_footprint()


def open_model(directory: Path, device: torch.device, dtype: torch.dtype, bits: int | None) -> OpenModel:
    """Opens a directory with its processor.

    Args:
        directory: of `build_vlm`, a training stage, or transformers' save_pretrained.
        device: where to.
        dtype: of the weights, and of the arithmetic where they are quantised.
        bits: 4 or 8: of the language model's weights (bitsandbytes); None: `dtype`.

    Raises:
        UserError: not a model of pictures and text, incomplete, or `bits` is another number.
    """
    settings = None if bits is None else quantization(bits, dtype)
    name = short_name(directory)
    try:
        if _model_type(directory) == SparseVLMConfig.model_type:
            model, processor = load_vlm(directory, dtype, quantization=settings, device=device)
            return OpenModel(name, model, processor)
        if settings is not None:
            settings.llm_int8_skip_modules = WHOLE
        other: Any = AutoModelForImageTextToText.from_pretrained(
            directory, dtype=dtype, quantization_config=settings, device_map={"": device}
        )
        keep_four_bit_layout(other)
        return OpenModel(name, other.eval(), AutoProcessor.from_pretrained(directory))
    except UserError:
        raise
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise UserError(f"The model {directory} cannot be opened: {one_line(error)}") from error


def _model_type(directory: Path) -> str | None:
    if not directory.is_dir():
        raise UserError(
            f"There is no model directory {directory}. A model of the hub: `hf download NAME --local-dir DIR`."
        )
    config = read_config(directory)
    if not config:
        raise UserError(f"{directory} is no model directory: it has no config.json.")
    return config.get("model_type")
