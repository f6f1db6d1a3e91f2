"""Open a model directory. Loading is strict: missing, unknown and misshapen weights are errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.utils.quantization_config import QuantizationConfigMixin

from sparse_vlm.errors import UserError, one_line
from sparse_vlm.files import read_object
from sparse_vlm.vlm.language.causal_lm import unfit_weights
from sparse_vlm.vlm.modeling import SparseVLMConfig, SparseVLMForConditionalGeneration
from sparse_vlm.vlm.processing import SparseVLMProcessor


def load_vlm(
    model_dir: str | Path,
    dtype: torch.dtype = torch.float32,
    *,
    attn_implementation: str | None = None,
    quantization: QuantizationConfigMixin | None = None,
    device: torch.device | None = None,
) -> tuple[SparseVLMForConditionalGeneration, SparseVLMProcessor]:
    """Open a model directory. Loading is strict, and the model is in eval mode.

    Args:
        model_dir: a directory written by `build_vlm` or a training stage.
        dtype: dtype of the weights; coordinates inside the encoder stay float32.
        attn_implementation: transformers' name for the language model's attention; None: transformers' choice.
        quantization: transformers' settings for the language model; the rest keeps `dtype`.
        device: None: the CPU.
    """
    model_dir = Path(model_dir)
    if not model_dir.is_dir():
        raise UserError(f"There is no model directory {model_dir}. `sparse-vlm build` makes one.")
    _check_model_type(model_dir)
    with _opening(model_dir, attn_implementation):
        processor = SparseVLMProcessor.from_pretrained(
            model_dir
        )  # first, because it fails fastest on a damaged directory
        if processor.chat_template is None:
            raise UserError(f"The model directory {model_dir} is incomplete: it has no chat_template.jinja.")
        loaded: Any = SparseVLMForConditionalGeneration.from_pretrained(
            model_dir,
            dtype=dtype,
            output_loading_info=True,
            attn_implementation=None if attn_implementation is None else {"text_config": attn_implementation},
            quantization_config=quantization,
            device_map=None if device is None else {"": device},
        )
    model, report = loaded
    if unfit := unfit_weights(report, "missing_keys", "unexpected_keys", "mismatched_keys"):
        raise UserError(f"The weights in {model_dir} do not fit its config.json ({unfit}).")
    return model, processor


def check_opens(model_dir: Path) -> None:
    """Check that a newly written model directory opens, without reading its weights. Call this before publishing it."""
    load_vlm(model_dir, device=torch.device("meta"))


@contextmanager
def _opening(model_dir: Path, attn_implementation: str | None) -> Iterator[None]:
    """Turn transformers' errors into UserErrors. A damaged directory can make it raise almost anything."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if attn_implementation is not None and isinstance(error, ImportError | ValueError):
            raise UserError(
                f"The attention {attn_implementation!r} is not available for {model_dir}: {one_line(error)}"
            ) from error
        raise UserError(f"The model directory {model_dir} cannot be opened: {one_line(error)}") from error


def _check_model_type(model_dir: Path) -> None:
    if not (model_dir / "config.json").is_file():
        raise UserError(f"{model_dir} is not a model directory: it has no config.json.")
    model_type = read_object(model_dir / "config.json").get("model_type")
    if model_type != SparseVLMConfig.model_type:
        hint = " It is an encoder: `sparse-vlm build` joins it to an LLM." if model_type == "sparseformer" else ""
        raise UserError(f"{model_dir} has a model of type {model_type!r}, not {SparseVLMConfig.model_type!r}.{hint}")
