"""QLoRA: the language model's frozen weights in 4 bits (bitsandbytes), under LoRA."""

from importlib.util import find_spec

from transformers import BitsAndBytesConfig
from transformers.integrations import is_deepspeed_zero3_enabled

from sparse_vlm.errors import UserError
from sparse_vlm.vlm.language.quantization import quantization
from train.stages.precision import compute_dtype
from train.stages.stage import StageArguments


def qlora_config(kind: str, double: bool, args: StageArguments) -> BitsAndBytesConfig:
    """Return the quantization with which the language model is loaded.

    Args:
        kind: "nf4" or "fp4".
        double: quantise the scales of the blocks as well.
        args: determine the precision in which the stage computes.

    Raises:
        UserError: unknown kind, bitsandbytes is missing, or ZeRO-3, which cannot shard packed weights.
    """
    if find_spec("bitsandbytes") is None:
        raise UserError("--bits 4 needs bitsandbytes: pip install bitsandbytes.")
    if is_deepspeed_zero3_enabled():
        raise UserError("--bits 4 does not work with ZeRO-3: use train/configs/deepspeed/zero2.json.")
    return quantization(4, compute_dtype(args), kind, double=double)
