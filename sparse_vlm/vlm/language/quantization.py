"""The language model's weights in 8 or 4 bits (bitsandbytes); everything else keeps its precision."""

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
# and projectors need their precision; the head is small beside the rest.
WHOLE = ("(.*\\.)?vision_tower", "(.*\\.)?multi_modal_projector", "lm_head")


def quantization(bits: int, compute: torch.dtype, kind: str = "nf4", *, double: bool = False) -> BitsAndBytesConfig:
    """transformers' settings of a model that is stored in few bits.

    Args:
        bits: 4 or 8.
        compute: of the arithmetic with 4-bit weights; with 8 bits bitsandbytes computes in int8.
        kind: "nf4" or "fp4", of 4 bits.
        double: quantise the scales of 4-bit blocks as well.

    Raises:
        UserError: other bits, or an unknown kind.
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
    """Forbids every 4-bit layer of bitsandbytes to repack its weights; returns how many layers there are.

    At the first forward pass in evaluation on a CPU with AVX512-BF16, bitsandbytes 0.50 repacks them for speed, for
    good. That fails unless 32 divides the outputs and the block size the inputs, rounds the scales to bf16, and what
    reads the weights afterwards (the backward pass, `dequantize`) takes them for what they were before.
    """
    try:
        from bitsandbytes.nn import Linear4bit
    except ImportError:  # then nothing is stored in 4 bits
        return 0
    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
    return len(layers)


class WholeVision(PreTrainedModel):
    """A model whose vision tower, projector and head keep their precision, whichever quantizer of transformers it is
    opened with; base class of ours, in front of transformers' own."""

    # Every quantizer leaves these out, beside those that the user's own settings name.
    _keep_in_fp32_modules = list(WHOLE)  # noqa: RUF012 (transformers' own convention)

    def _get_dtype_plan(self, dtype: torch.dtype) -> dict[str, torch.dtype]:
        """Without them: in float16, too, they have the dtype asked for."""
        plan = super()._get_dtype_plan(dtype)
        return {name: kept for name, kept in plan.items() if name not in WHOLE}

    @classmethod
    def from_pretrained(cls, *args: Any, **options: Any) -> Any:
        """As transformers'.

        Raises:
            UserError: a quantizer that takes no list of exceptions has replaced a part of the vision tower, the
                projector or the head.
        """
        loaded = super().from_pretrained(*args, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if getattr(model, "hf_quantizer", None) is not None:
            keep_four_bit_layout(model)
            _check_whole(model)
        return loaded


def _check_whole(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        kept = not should_convert_module(name, list(WHOLE))
        if kept and (type(parameter) is not nn.Parameter or parameter.dtype not in FLOATS):
            raise UserError(
                f"This quantizer has replaced {name}, but the vision tower, the projector and the head keep their "
                "precision: name them in the list of exceptions of its own settings, or choose another quantizer."
            )
