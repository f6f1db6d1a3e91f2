"""The language model's weights in 8 or 4 bits (bitsandbytes); everything else keeps its precision."""

from torch import dtype
from transformers import BitsAndBytesConfig

from sparse_vlm.errors import UserError, unknown_choice

KINDS = ("nf4", "fp4")
# Patterns that transformers matches from the start of a module's name. Vision towers, with their coordinates, and
# projectors need their precision, whatever a model of transformers calls them; the head is small beside the rest.
WHOLE = [r"(.*\.)?(vision\w*|visual|multi_modal_projector|connector)", "lm_head"]


def quantization(bits: int, compute: dtype, kind: str = "nf4", *, double: bool = False) -> BitsAndBytesConfig:
    """transformers' settings of a model whose language model is stored in few bits.

    Args:
        bits: 4 or 8.
        compute: of the arithmetic with 4-bit weights; with 8 bits bitsandbytes computes in int8.
        kind: "nf4" or "fp4", of 4 bits.
        double: quantise the scales of 4-bit blocks as well.

    Raises:
        UserError: other bits, or an unknown kind.
    """
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=WHOLE)
    if bits != 4:
        raise UserError(f"--bits must be 4 or 8, got {bits}.")
    if kind not in KINDS:
        raise unknown_choice("--quant_type", kind, KINDS)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=compute,
        llm_int8_skip_modules=WHOLE,
    )
