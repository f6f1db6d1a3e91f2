"""Frozen weights of a stage that computes in bf16 are stored in bf16, in half of float32's memory."""

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from transformers.pytorch_utils import Conv1D

from sparse_vlm.encoder.float32 import Float32Module
from sparse_vlm.encoder.focusing import FocusingTransformer
from sparse_vlm.errors import UserError
from train.stages.arguments import StageArguments
from train.stages.precision import compute_dtype

logger = logging.getLogger(__name__)
# Autocast casts the weights of the first three at each use, so casting them once loses nothing.
CAST = (nn.Linear, _ConvNd, Conv1D, nn.Embedding)


def cast_frozen(model: nn.Module, args: StageArguments) -> None:
    """Cast frozen matrices in place to bf16, if the stage computes in bf16.

    Norms, trained weights, and the weights that coordinates depend on keep their dtype, and embeddings still return
    float32: under autocast, the outputs are those of float32 weights that were rounded to bf16. Under ZeRO-3, each
    process casts its shards; call this before the engine is made.

    Raises:
        UserError: ZeRO-3 keeps the shards on NVMe.
    """
    dtype = compute_dtype(args)
    if dtype != torch.bfloat16:
        return
    for module in _cast_modules(model):
        frozen = [p for p in module.parameters(recurse=False) if not p.requires_grad and p.is_floating_point()]
        for parameter in frozen:
            _cast(parameter, dtype)
        if frozen and isinstance(module, nn.Embedding):
            module.register_forward_hook(_in_float32)


def log_weight_bytes(model: nn.Module, args: StageArguments) -> None:
    """Log the memory that the weights take, e.g. "Weights: 13.48 GB in bfloat16", in the main process."""
    if args.process_index == 0:
        held = sorted(weight_bytes(model).items())
        logger.info("Weights: %s", ", ".join(f"{size / 1e9:.3g} GB in {dtype}" for dtype, size in held))


def weight_bytes(model: nn.Module) -> dict[str, int]:
    """Return the bytes of a model's parameters by dtype. A tied one counts once; under ZeRO-3, only own shards."""
    counts: dict[str, int] = {}
    for parameter in model.parameters():
        held = getattr(parameter, "ds_tensor", parameter)
        name = str(held.dtype).removeprefix("torch.")
        counts[name] = counts.get(name, 0) + held.numel() * held.element_size()
    return counts


def _cast_modules(module: nn.Module) -> Iterator[nn.Module]:
    # A focusing transformer's tokens, which determine coordinates, would take on the dtype of its weights.
    if isinstance(module, Float32Module | FocusingTransformer):
        return
    if isinstance(module, CAST):
        yield module
    for child in module.children():
        yield from _cast_modules(child)


def _cast(parameter: nn.Parameter, dtype: torch.dtype) -> None:
    shard: Any = getattr(parameter, "ds_tensor", None)
    if shard is not None:
        if shard.numel() != shard.ds_numel:
            raise UserError(
                "bf16 does not work with parameters on NVMe: use train/configs/deepspeed/zero3_offload.json, or --bf16 "
                "False."
            )
        pinned = shard.is_pinned()
        shard.data = shard.data.to(dtype)
        if pinned:
            shard.data = shard.data.pin_memory()
    parameter.data = parameter.data.to(dtype)


def _in_float32(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.float()
