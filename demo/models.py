"""Opening models: our model directories, and any image-text-to-text model of transformers."""

from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, AutoProcessor

from sparse_vlm.errors import UserError, one_line
from sparse_vlm.model_directory import read_config, short_name
from sparse_vlm.vlm.language.positions import most_positions
from sparse_vlm.vlm.language.quantization import keep_four_bit_layout, quantization
from sparse_vlm.vlm.loading import load_vlm
from sparse_vlm.vlm.modeling import SparseVLMConfig, SparseVLMForConditionalGeneration
from sparse_vlm.vlm.vision import check_free_rois, visual_tokens

# Modules of transformers' models that are not quantized: vision tower and projector, under their various names.
NOT_QUANTIZED = [r"(.*\.)?(vision\w*|visual|multi_modal_projector|connector)", "lm_head"]
MOST_TOKENS = 64  # of an image; more if the model's own number is larger


class TokenRange(NamedTuple):
    """Numbers of visual tokens of an image: the model's `own`, and the `least` and `most` that the page offers."""

    own: int
    least: int
    most: int


@dataclass(frozen=True)
class OpenModel:
    """An opened model with its processor.

    Attributes:
        name: the last two parts of its path, since many directories are called "model".
        model: in eval mode.
        processor: the model's own.
        lock: held while the model computes: visitors share its hooks and its attention implementation.
    """

    name: str
    model: Any
    processor: Any
    lock: Lock = field(default_factory=Lock, repr=False)

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights; shared weights count once."""
        return self.model.get_memory_footprint()

    @property
    def fixed(self) -> str:
        """Why the number of visual tokens is fixed and no box can be asked about, as a sentence; empty if both can."""
        if not isinstance(self.model, SparseVLMForConditionalGeneration):
            return "A model of transformers itself takes neither a number of visual tokens nor regions."
        try:
            check_free_rois(self.model.model.vision_tower)
        except UserError as error:
            return str(error)
        return ""

    @property
    def token_range(self) -> TokenRange:
        """The numbers of visual tokens of an image that a model which is not `fixed` can be asked for."""
        own = self.model.config.image_seq_length
        kept = own - visual_tokens(self.model.config.vision_config).latent
        positions = most_positions(self.model.config.get_text_config())
        most = max(own, MOST_TOKENS if positions is None else min(MOST_TOKENS, positions))
        return TokenRange(own, kept + 1, most)


def open_model(directory: Path, device: torch.device, dtype: torch.dtype, bits: int | None) -> OpenModel:
    """Open a model directory with its processor.

    Args:
        directory: written by `build_vlm`, a training stage, or transformers' save_pretrained.
        device: device of the weights.
        dtype: dtype of the weights; quantized weights compute in it.
        bits: 4 or 8: quantize the language model's weights (bitsandbytes); None: keep them in `dtype`.

    Raises:
        UserError: the directory is not an image-text model or is incomplete, or `bits` is another number.
    """
    settings = None if bits is None else quantization(bits, dtype)
    name = short_name(directory)
    try:
        if _model_type(directory) == SparseVLMConfig.model_type:
            model, processor = load_vlm(directory, dtype, quantization=settings, device=device)
            return OpenModel(name, model, processor)
        if settings is not None:
            settings.llm_int8_skip_modules = NOT_QUANTIZED
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
            f"There is no model directory {directory}. To download a model of the hub: "
            "`hf download NAME --local-dir DIR`."
        )
    config = read_config(directory)
    if not config:
        raise UserError(f"{directory} is not a model directory: it has no config.json.")
    return config.get("model_type")
