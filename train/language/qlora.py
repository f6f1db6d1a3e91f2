"""QLoRA: the language model's frozen weights in 4 bits (bitsandbytes), under LoRA."""

from importlib.util import find_spec

from transformers import BitsAndBytesConfig
from transformers.integrations import is_deepspeed_zero3_enabled

from sparse_vlm.errors import UserError
from sparse_vlm.vlm.language.quantization import quantization
from train.stages.precision import compute_dtype
from train.stages.stage import StageArguments


def four_bits(kind: str, double: bool, args: StageArguments) -> BitsAndBytesConfig:
    """How the language model is loaded.

    Args:
        kind: "nf4" or "fp4".
        double: quantise the blocks' scales as well.
        args: says in what precision the stage computes.

    Raises:
        UserError: unknown kind, no bitsandbytes, or ZeRO-3, which would have to split packed weights.
    """
    if find_spec("bitsandbytes") is None:
        raise UserError("--bits 4 needs bitsandbytes: pip install bitsandbytes.")
    if is_deepspeed_zero3_enabled():
        raise UserError("--bits 4 does not go together with ZeRO-3: use train/configs/deepspeed/zero2.json.")
    return quantization(4, compute_dtype(args), kind, double=double)
