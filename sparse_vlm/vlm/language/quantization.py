"""Quantization of the language model to 8 or 4 bits (bitsandbytes). All other parts keep their precision."""

from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.quantizers.quantizers_utils import should_convert_module

from sparse_vlm.errors import UserError, unknown_choice

KINDS = ("nf4", "fp4")
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Patterns that transformers' quantizers match from the start of a module's name. Vision towers, with their coordinates,
# and projectors need their precision; the head is comparatively small.
UNQUANTIZED = ("(.*\\.)?vision_tower", "(.*\\.)?multi_modal_projector", "lm_head")


def quantization(bits: int, compute: torch.dtype, kind: str = "nf4", *, double: bool = False) -> BitsAndBytesConfig:
    """Create transformers' settings for a quantized model.

    Args:
        bits: 4 or 8.
        compute: dtype of computations with 4-bit weights; with 8 bits bitsandbytes computes in int8.
        kind: "nf4" or "fp4", for 4 bits.
        double: quantize the scales of 4-bit blocks as well.
    """
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    if bits != 4:
        raise UserError(f"--bits must be 4 or 8, got {bits}.")
    if kind not in KINDS:
        raise unknown_choice("--quant_type", kind, KINDS)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=compute,
    )


def keep_four_bit_layout(model: nn.Module) -> int:
    """Prevent the 4-bit layers of bitsandbytes from repacking their weights. Returns the number of layers.

    At the first forward pass in eval mode on a CPU with AVX512-BF16, bitsandbytes 0.50 repacks the weights permanently
    for speed. This fails unless 32 divides the outputs and the block size divides the inputs. It also rounds the scales
    to bf16, and the backward pass and `dequantize` then misread the weights.
    """
    try:
        from bitsandbytes.nn import Linear4bit
    except ImportError:  # without it no model has 4-bit weights
        return 0
    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
    return len(layers)


class UnquantizedVision(PreTrainedModel):
    """Base class of models whose vision tower, projector and head keep their precision under any quantizer.

    It precedes transformers' own class among the bases.
    """

    # every quantizer skips these, in addition to those that the user's settings name
    _keep_in_fp32_modules = list(UNQUANTIZED)  # noqa: RUF012 (transformers' own convention)

    def _get_dtype_plan(self, dtype: torch.dtype) -> dict[str, torch.dtype]:
        """Remove them from the plan: without a quantizer they have the requested dtype, in float16 too."""
        plan = super()._get_dtype_plan(dtype)
        return {name: kept for name, kept in plan.items() if name not in UNQUANTIZED}

    @classmethod
    def from_pretrained(cls, *args: Any, **options: Any) -> Any:
        """Load as transformers does, and check that a quantizer has not replaced the unquantized parts."""
        loaded = super().from_pretrained(*args, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if getattr(model, "hf_quantizer", None) is not None:
            keep_four_bit_layout(model)
            _check_unquantized(model)
        return loaded


def _check_unquantized(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        kept = not should_convert_module(name, list(UNQUANTIZED))
        if kept and (type(parameter) is not nn.Parameter or parameter.dtype not in FLOATS):
            raise UserError(
                f"This quantizer has replaced {name}, but vision tower, projector and head must keep their precision. "
                "Exclude them in the quantizer's own settings, or choose another quantizer."
            )
