"""QLoRA: the language model's frozen weights in 4 bits (bitsandbytes), under LoRA."""

from importlib.util import find_spec

from torch import nn
from transformers import BitsAndBytesConfig
from transformers.integrations import is_deepspeed_zero3_enabled

from sparse_vlm.errors import UserError
from sparse_vlm.vlm.quantization import quantization
from train.precision import compute_dtype
from train.stage import StageArguments


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
        raise UserError("--bits 4 does not go together with ZeRO-3: use train/zero2.json.")
    return quantization(4, compute_dtype(args), kind, double=double)


def keep_gradients_right(model: nn.Module) -> int:
    """Forbids every 4-bit layer to repack its weights; returns how many layers there are.

    In evaluation on a CPU with AVX512-BF16, bitsandbytes 0.50 repacks them for speed, for good, and the backward pass
    of the training that follows reads them as if they were not (it warns, and the gradients are wrong).
    """
    if find_spec("bitsandbytes") is None:
        return 0
    from bitsandbytes.nn import Linear4bit

    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
    return len(layers)
